"""Protocol `retrieval` on real sets, through the API: objects on a turntable (COIL-20), packages in shops (Grocery)."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from belvedere import api
from belvedere.evaluate.contract import Result
from newcomer import TINY


def unpack(archive: Path, place: Path) -> Path:
    """Unpack an archive of images; returns its folder."""
    with tarfile.open(archive) as tar:
        tar.extractall(place, filter="data")
        return place / tar.getnames()[0].split("/")[0]


def evaluated(data: Path, test: Path, place: Path) -> Result:
    """Retrieval among the images of `test` with a network that has been trained for one step only."""
    run = api.pretrain(data, out=place / "run", device="cpu", settings={**TINY, "train.steps": 1})
    (result,) = api.evaluate(run, data, test=test, protocols=["retrieval"], device="cpu")
    return result


def chance(test: Path) -> float:
    """Recall@1 in percent of an order by lot: of a query's other images, the share of those of its class."""
    counts = np.array([len(list(folder.iterdir())) for folder in test.iterdir()])
    asked = counts[counts > 1]
    return 100 * float((asked * (asked - 1)).sum() / asked.sum() / (counts.sum() - 1))


def in_bounds(result: Result, lowest: float) -> None:
    """Every subject finds more than chance does, and no metric is perfect; recall grows with k."""
    assert set(result.metrics) == {"run", "untrained", "pixels"}
    for metrics in result.metrics.values():
        assert lowest < metrics["recall1"].low <= metrics["recall1"].value < 100
        assert metrics["recall1"].value < metrics["recall10"].value < metrics["recall100"].value <= 100
        assert lowest < metrics["map_r"].value < metrics["recall1"].value


@pytest.mark.slow
def test_objects_on_a_turntable(shared_data: Path, tmp_path: Path) -> None:
    """Of each of 20 objects every other view, 30 degrees apart, asks for the others."""
    coil = unpack(shared_data / "coil20_24views.tar", tmp_path)
    test = tmp_path / "test"
    for view in sorted(coil.rglob("*.png"))[1::2]:
        (test / view.parent.name).mkdir(parents=True, exist_ok=True)
        view.rename(test / view.parent.name / view.name)
    result = evaluated(coil, test, tmp_path)
    assert (result.settings["queries"], result.settings["gallery"]) == (240, 240)
    assert chance(test) == pytest.approx(100 * 11 / 239)
    in_bounds(result, chance(test))


@pytest.mark.slow
def test_packages_in_shops(shared_data: Path, tmp_path: Path) -> None:
    """Pictures of the validation list ask for others of their product: 60 products, none with one picture only."""
    grocery = unpack(shared_data / "grocery128.tar", tmp_path)
    result = evaluated(grocery / "iconic", grocery / "val", tmp_path)
    assert (result.settings["queries"], result.settings["gallery"]) == (296, 296)
    in_bounds(result, chance(grocery / "val"))
