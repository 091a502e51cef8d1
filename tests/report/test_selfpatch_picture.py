"""The picture of neighbours that patches are asked to predict."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import LARGEST
from belvedere.report.tasks.selfpatch import Choices, draw
from belvedere.tasks.selfpatch import torus_neighbours
from tiny import tiny_canvases, tiny_trainer


def shown_by_a_run(**settings: object) -> dict[str, torch.Tensor]:
    trainer, feed = tiny_trainer("mocov3", tiny_canvases(16), tasks=["selfpatch"], **settings)
    shown = trainer.show(next(feed.stream(0, 1))[0])["selfpatch"]
    return {name: x.float().cpu() for name, x in shown.items()}


@pytest.mark.parametrize(("settings", "k"), [({"views__size": [24, 40]}, 4), ({"task__selfpatch__k": 8}, 8)])
def test_the_picture_and_its_table(
    tmp_path: Path, make_encoder: Callable[..., Encoder], settings: dict[str, object], k: int
) -> None:
    shown = shown_by_a_run(**settings)
    (picture,) = draw(tmp_path, shown, make_encoder())
    file = tmp_path / picture.file
    assert file.stat().st_size <= LARGEST
    assert np.ptp(np.asarray(Image.open(file).convert("RGB"))) > 100
    assert len(picture.alt) > 20
    assert ("others" in picture.caption) == (k < 8)
    with (tmp_path / picture.table).open() as table:
        rows = list(csv.DictReader(table))
    height, width = (int(side) for side in shown["grid"])
    assert len(rows) == 6 * height * width * 8
    chosen = sum(int(row["chosen"]) for row in rows)
    assert chosen == 6 * height * width * k
    # A patch of the middle of the second view, found again in what the task showed.
    place = 1 * width + 2
    own = [row for row in rows if (row["image"], row["row"], row["column"]) == ("1", "1", "2")]
    ids = [int(row["neighbour_row"]) * width + int(row["neighbour_column"]) for row in own]
    assert ids == shown["neighbours"][place].tolist()
    assert [float(row["cosine"]) for row in own] == pytest.approx(shown["similarity"][1, place].tolist(), abs=1e-5)
    best = sorted(range(8), key=lambda j: -float(own[j]["cosine"]))[:k]
    assert sorted(best) == [j for j in range(8) if own[j]["chosen"] == "1"]


def test_directions_wrap_around() -> None:
    chosen = np.zeros((2, 9, 8), np.bool_)
    chosen[0] = True
    found = Choices(3, 3, torch.zeros(2, 3, 3, 3), torus_neighbours(3, 3).numpy(), chosen.astype(np.float32), chosen)
    # Patches 1 to 8 around the upper left one.
    around = [[1, 2], [1, 0], [2, 1], [2, 2], [2, 0], [0, 1], [0, 2], [0, 0]]
    assert found.directions()[0].tolist() == around
    assert found.shares() == pytest.approx(np.array([[0.5, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0.5]]))
