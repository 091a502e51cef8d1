"""The picture of the views before a run: it shows what the policy of the run proposes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from belvedere import api
from belvedere import config as configuration
from belvedere.images.canvases import Canvases
from belvedere.pretrain import start
from belvedere.views.views import Views
from tiny import tiny_canvases, tiny_config


@pytest.mark.parametrize(
    ("settings", "slots", "stages"),
    [
        ({"policy": "random"}, 2, 0),
        ({"policy": "trivial"}, 2, 1),
        ({"policy": "randaugment", "n_ops": 3}, 2, 3),
        ({"policy": "hard", "inner": "randaugment"}, 4, 2),
    ],
)
def test_the_picture_shows_the_policy_s_views(
    settings: dict[str, Any], slots: int, stages: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Views] = []
    draw = start.draw_views

    def watched(images: Any, views: Views, **options: Any) -> Any:
        drawn.append(views)
        return draw(images, views, **options)

    monkeypatch.setattr(start, "draw_views", watched)
    config = tiny_config("simclr", tiny_canvases(), **{f"views__{key}": value for key, value in settings.items()})
    start.picture(config, tiny_canvases(), tmp_path / "views.png", 2)
    assert (tmp_path / "views.png").stat().st_size > 5000
    (views,) = drawn
    assert len(views.names) == slots
    programs = views.params.extras.get("op")
    assert (0 if programs is None else programs.shape[2]) == stages
    if stages:
        assert not views.params.jitter.any()


@pytest.mark.parametrize("tile", [0, 32])
def test_of_many_images_some_are_decoded(tile: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the number of images decides is that of all, so the picture is the one of the run."""
    seen: list[tuple[int, int]] = []

    def settled(resolved: configuration.Resolved, facts: Any) -> Any:
        seen.append((facts.images, 0))
        return start.settle(resolved, facts)

    def pictured(config: Any, canvases: Canvases, out: Path, images: int) -> None:
        seen.append((len(canvases), images))
        start.picture(config, canvases, out, images)

    monkeypatch.setattr(api, "SAMPLED", 5)
    monkeypatch.setattr(api, "settle", settled)
    monkeypatch.setattr(api, "picture", pictured)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
    resolved = configuration.resolve("simclr", {"images.tile": tile, "views.size": 32, "backbone.patch": 8})
    api.draw_views(pixels, resolved, out=tmp_path / "views.png", images=3)
    assert (tmp_path / "views.png").stat().st_size > 5000
    assert seen == [(48 if tile else 12, 0), (5, 3)]
