"""Policies as Python objects say the same as keys on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import belvedere
from belvedere import config, plugins, policies
from newcomer import TINY
from tiny import tiles


def test_objects_are_settings() -> None:
    views = policies.hard(candidates=6, inner=policies.iou(start=0.5))
    expected = {"views.policy": "hard", "views.candidates": 6, "views.inner": "iou", "views.start": 0.5}
    assert views.settings() == expected
    # How local views take part; a number is how many there are.
    assert policies.hard(locals="scored").settings()["views.local_views"] == "scored"
    assert policies.hard(locals=4, local_views="choose").settings()["views.locals"] == 4
    assert set(plugins.names("policy")) <= set(dir(policies))
    with pytest.raises(AttributeError, match="no view policy 'hart': did you mean 'hard'"):
        policies.hart()


def test_the_guide_names_every_option() -> None:
    docs = Path(__file__).parents[1] / "docs"
    for name in plugins.names("policy"):
        guide = (docs / ("writers.md" if name == "ink" else "views.md")).read_text(encoding="utf-8")
        options = plugins.load("policy", name).Options.model_fields
        assert [option for option in options if f"views.{option}" not in guide] == [], name


def test_a_run_with_an_object(tmp_path: Path) -> None:
    settings = {**TINY, "views.locals": 0, "train.steps": 2}
    views = policies.hard(candidates=3)
    run = belvedere.pretrain(tiles(24), views=views, out=tmp_path / "run", settings=settings)
    read = config.from_yaml(run / "config.yaml").config.views
    assert read.policy == "hard"
    assert (read.model_extra or {})["candidates"] == 3
    with pytest.raises(belvedere.UserError, match=r"views\.candidate"):
        belvedere.pretrain(tiles(24), views=policies.hard(candidate=3), out=tmp_path / "other", settings=settings)
