"""Pictures of RelViT's task: the files, and a table that tells what the task said."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.pretrain.compose import make_encoder
from belvedere.report.drawing import Picture
from belvedere.report.tasks import ask_tasks, draw_tasks
from belvedere.tasks.relations import RELATIONS
from tiny import tiny_canvases, tiny_trainer, train


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def drawn(folder: Path, canvases: Canvases, **settings: Any) -> tuple[list[Picture], dict[str, Tensor]]:
    """The pictures of a task trained for a few steps, and what it said of the images."""
    trainer, feed = tiny_trainer("none", canvases, train__batch=canvases.labels.size, **settings)
    train(trainer, feed, 0, 3)
    encoder: Encoder = make_encoder(trainer.config, trainer.evaluated.backbone)
    shown = ask_tasks(trainer, canvases)
    return draw_tasks(folder, shown, encoder), dict(shown["relations"])


def test_the_table_holds_every_pair_of_every_image(tmp_path: Path) -> None:
    canvases = tiny_canvases(16)
    pictures, said = drawn(tmp_path, canvases)
    assert [picture.name for picture in pictures] == ["relations", "places"]
    for picture in pictures:
        assert min(Image.open(tmp_path / picture.file).size) > 300
        assert picture.caption
        assert picture.alt
    rows = table(tmp_path / "relations.csv")
    assert [(row["relation"], row["called"]) for row in rows] == [(a, b) for a in RELATIONS for b in RELATIONS]
    counts = torch.tensor([int(row["pairs"]) for row in rows]).view(9, 9)
    assert torch.equal(counts, said["confusion"])
    # On 4 x 4 patches: 36 pairs in each corner class, 24 in each axis class, 16 patches with themselves.
    assert (counts.sum(1) / 16).tolist() == [36, 24, 36, 24, 16, 24, 36, 24, 36]
    for i in range(9):
        assert sum(float(row["share"]) for row in rows[9 * i : 9 * i + 9]) == pytest.approx(1, abs=1e-5)
    right = counts.diag().sum().item() / counts.sum().item()
    assert f"{right:.0%} are right; always naming the most frequent relation would give 14%" in pictures[0].caption
    places = [float(row["share right"]) for row in table(tmp_path / "places.csv")]
    assert places == pytest.approx(said["places"].flatten().tolist(), abs=1e-5)


def test_only_heads_that_exist_are_drawn(tmp_path: Path) -> None:
    pictures, _ = drawn(tmp_path, tiny_canvases(8), task__relations__relation=False, views__size=[32, 48])
    assert [picture.name for picture in pictures] == ["places"]
    assert {(int(row["row"]), int(row["column"])) for row in table(tmp_path / "places.csv")} == {
        (y, x) for y in range(4) for x in range(6)
    }


def test_distances_and_angles_are_drawn_beside_the_truth(tmp_path: Path) -> None:
    off = {"task__relations__relation": False, "task__relations__absolute": False}
    on = {"task__relations__distance": True, "task__relations__angle": True}
    pictures, said = drawn(tmp_path, tiny_canvases(8), **off, **on)
    (picture,) = pictures
    assert min(Image.open(tmp_path / picture.file).size) > 300
    rows = table(tmp_path / "pairs.csv")
    for name in ("distance", "angle"):
        own = [row for row in rows if row["what"] == name]
        assert sum(int(row["pairs"]) for row in own) == 16 * 16
        mean = sum(int(row["pairs"]) * float(row["said"]) for row in own) / 256
        assert mean == pytest.approx(float(said[name][1].mean()), abs=1e-4)
    assert "of the distances" in picture.alt
