"""The jigsaw's picture: its files, and a table that says what the network said."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from PIL import Image

from belvedere.backbones.build import build_backbone
from belvedere.measure.encoder import Encoder
from belvedere.report.tasks.jigsaw import draw
from belvedere.tasks._permutations import far_permutations
from belvedere.tasks.jigsaw import cut_tiles, shuffle
from tiny import tiles


def test_boards_and_table(tmp_path: Path) -> None:
    orders = torch.from_numpy(far_permutations(5, range(9)))
    truth, said = orders[[0, 1, 2, 3, 4, 1, 2]], orders[[0, 1, 2, 4, 3, 2, 2]]
    images = (torch.from_numpy(tiles(7, (32, 32))).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    shuffled = shuffle(cut_tiles(images), truth)
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, patch=8, width=32, depth=1, seed=0)
    encoder = Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)
    shown = {"shuffled": shuffled, "truth": truth.float(), "said": said.float(), "orders": orders.float()}
    [picture] = draw(tmp_path, shown, encoder)
    assert Image.open(tmp_path / picture.file).size[0] > 500
    rows = list(csv.DictReader((tmp_path / picture.table).open()))
    assert [int(row["right"]) for row in rows] == [1, 1, 1, 0, 0, 0, 1]
    assert [int(row["tiles_in_place"]) for row in rows] == (truth == said).sum(1).tolist()
    assert rows[0]["true_order"] == "1-2-3-4-5-6-7-8-9"
    assert "4 of 7 boards (57%)" in picture.caption
    assert "chance is 1 in 5" in picture.alt
