"""The gallery: every layout draws, captions tell what fired, and the pixels shown are the views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from belvedere.views.operations import space
from belvedere.views.params import ViewParams
from belvedere.views.picture import describe, draw_views
from belvedere.views.program import NOTHING, OperationProgram, with_program
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import ViewSettings, build_slots


@pytest.mark.parametrize(("count", "local_views", "side", "channels"), [(1, 0, 32, 3), (3, 4, 40, 1), (8, 10, 96, 4)])
def test_every_layout_draws(
    count: int, local_views: int, side: int, channels: int, photos: Tensor, tmp_path: Path
) -> None:
    images = list(torch.cat([photos, photos], -1)[:count, :side, :side, :channels])
    recipe = ViewSettings(size=(32, 24), locals=local_views, local_size=(16, 16))
    record = sample_views(build_slots(recipe, channels), range(count), [image.shape[:2] for image in images], 0, 0)
    constants = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    figure = draw_views(images, render_views(images, record, **constants), **constants, path=tmp_path / "views.png")
    assert len(figure.axes) == count * (1 + 2 + local_views)
    assert len(figure.axes[0].patches) == 2 + local_views
    with Image.open(tmp_path / "views.png") as picture:
        assert min(picture.size) > 150
        assert np.asarray(picture.convert("L")).std() > 10


def test_views_are_shown_as_they_are(photos: Tensor, drawn: ViewParams) -> None:
    constants = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    unchanged = replace(drawn, jitter=drawn.jitter & False, gray=drawn.gray & False, sigma=drawn.sigma * 0)
    unchanged = replace(unchanged, solarize=unchanged.solarize * 0 + 2)
    views = render_views(photos, unchanged, **constants)
    figure = draw_views(list(photos), views, **constants)
    shown = np.asarray(figure.axes[1].images[0].get_array())
    plain = render_views(photos, unchanged, mean=(0, 0, 0), std=(1, 1, 1))["global_a"][0].permute(1, 2, 0).numpy()
    assert shown == pytest.approx(plain, abs=1e-5)


def test_an_image_is_named_by_the_end_of_its_name(photos: Tensor, drawn: ViewParams) -> None:
    constants = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    views = render_views(photos, drawn, **constants)
    names = ["$a_1$/b.png", *[f"{'folder' * 9}/the-photograph.png"] * (len(photos) - 1)]
    figure = draw_views(list(photos), views, **constants, names=names)
    told = [axes.texts[0].get_text() for axes in figure.axes[:: 1 + len(drawn.slots)]]
    assert told[0].startswith("$a_1$/b.png, ")
    assert told[1].startswith("…folder/the-photograph.png, ")
    assert not figure.axes[0].texts[0].get_parse_math()


def test_captions_name_only_what_fired(drawn: ViewParams) -> None:
    off = replace(
        drawn, flip=drawn.flip & False, jitter=drawn.jitter & False, gray=drawn.gray & False, sigma=drawn.sigma * 0,
        solarize=drawn.solarize * 0 + 2, h=drawn.h * 0 + 48, w=drawn.w * 0 + 40,
    )  # fmt: skip
    assert describe(off, 0, 0) == "crop 25%"
    on = replace(
        off, flip=~off.flip, jitter=~off.jitter, gray=~off.gray, sigma=off.sigma + 1.3, solarize=off.solarize * 0 + 0.5,
        brightness=off.brightness * 0 + 1.2, contrast=off.contrast * 0 + 0.8, saturation=off.saturation * 0 + 1,
        hue=off.hue * 0 - 0.05,
    )  # fmt: skip
    assert describe(on, 0, 0) == "crop 25%  flip  gray  blur 1.3\nb 1.20  c .80  h -.05\nsolarize"


def test_captions_tell_a_view_s_program(photos: Tensor, drawn: ViewParams, tmp_path: Path) -> None:
    operations = space("ssl12", 3)
    names = [operation.name for operation in operations]
    op = torch.tensor([names.index("rotate"), names.index("blur"), NOTHING, names.index("hue")]).expand(4, 8, 4)
    magnitude = torch.tensor([0.25, 0.5, 0.7, 1.0]).expand(4, 8, 4)
    params = with_program(drawn, op, magnitude, -torch.ones(4, 8, 4))
    corner = {name: getattr(params, name) * 0 for name in ("top", "left")}
    params = replace(params, **corner, flip=params.flip & False, h=params.h * 0 + 48, w=params.w * 0 + 40)
    assert describe(params, 2, 1, operations) == "crop 25%\nrotate  -.25\nblur  .50\nhue  -1.00"
    constants = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    views = render_views(photos, params, **constants, program=OperationProgram(operations))
    with pytest.raises(ValueError, match="which operations"):
        draw_views(list(photos), views, **constants)
    figure = draw_views(list(photos), views, **constants, operations=operations, path=tmp_path / "views.png")
    long = replace(params, extras={name: extra.repeat(1, 1, 3) for name, extra in params.extras.items()})
    taller = draw_views(list(photos), replace(views, params=long), **constants, operations=operations)
    assert taller.get_figheight() > figure.get_figheight()
