"""The confusion of the four turns."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import LARGEST
from belvedere.report.tasks.rotation import confusion_of, draw


def test_rows_are_the_truth() -> None:
    found = confusion_of(torch.tensor([0, 0, 1, 3]), torch.tensor([0, 2, 1, 1]))
    assert found.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_the_picture_has_its_words_and_numbers(
    tmp_path: Path, make_canvases: Callable[..., Canvases], make_encoder: Callable[..., Encoder]
) -> None:
    pixels = torch.as_tensor(make_canvases().batch(np.arange(40))).permute(0, 3, 1, 2) / 255 * 2 - 1
    turns = torch.arange(40) % 4
    said = torch.where(torch.arange(40) < 30, turns, (turns + 1) % 4)
    shown = {"pixels": pixels, "turns": turns.float(), "logits": F.one_hot(said, 4).float()}
    (picture,) = draw(tmp_path, shown, make_encoder())
    assert "75 % of 40 views" in picture.caption
    assert (tmp_path / picture.file).stat().st_size <= LARGEST
    assert np.ptp(np.asarray(Image.open(tmp_path / picture.file).convert("RGB"))) > 100
    rows = list(csv.reader((tmp_path / picture.table).open()))
    assert [row[0] for row in rows[1:]] == ["0°", "90°", "180°", "270°"]
    matrix = torch.tensor([[int(cell) for cell in row[1:]] for row in rows[1:]])
    assert matrix.sum() == 40
    assert matrix.diagonal().sum() == 30
