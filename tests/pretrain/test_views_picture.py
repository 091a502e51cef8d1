"""The picture of the views before a run: it shows what the policy of the run proposes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
