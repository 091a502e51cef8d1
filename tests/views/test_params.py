"""The record: choosing candidates, joining, moving, and the geometry between views."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from belvedere.views.params import FIELDS, ViewParams
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot

MEAN = STD = (0.5, 0.5, 0.5)


def boxes(**columns: list[list[float]]) -> ViewParams:
    """A record of two 8 x 8 views `a` and `b` of 100 x 200 images with the given fields."""
    count = len(next(iter(columns.values()))[0])
    slots = [Slot(name, (8, 8), (0.5, 1.0)) for name in ("a", "b")]
    record = sample_views(slots, range(count), [(100, 200)] * count, 0, 0)
    tensors = {name: torch.tensor(values).to(getattr(record, name).dtype) for name, values in columns.items()}
    return replace(record, **tensors)


def same(a: ViewParams, b: ViewParams) -> bool:
    return a.slots == b.slots and all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def test_gather_picks_each_image_s_candidate(photos: Tensor) -> None:
    names = [f"global_a.{k}" for k in range(4)]
    candidates = sample_views([Slot(name, (24, 24), (0.2, 1.0)) for name in names], range(8), [(96, 80)] * 8, 0, 0)
    candidates = replace(candidates, extras={"mark": torch.arange(32).reshape(4, 8, 1)})
    choice = torch.tensor([[0, 1, 2, 3, 3, 2, 1, 0], [1, 2, 3, 0, 0, 0, 0, 1]])
    chosen = candidates.gather(choice, ["global_a", "global_b"])
    assert chosen.slots == ("global_a", "global_b")
    assert torch.equal(chosen.extras["mark"][..., 0], choice * 8 + torch.arange(8))
    every = render_views(photos, candidates, mean=MEAN, std=STD)
    got = render_views(photos, chosen, mean=MEAN, std=STD)
    for v, slot in enumerate(chosen.slots):
        expected = torch.stack([every[names[choice[v, n]]][n] for n in range(8)])
        assert (got[slot] - expected).abs().max() <= 2e-5


def test_gather_of_the_first_candidates_is_the_identity(drawn: ViewParams) -> None:
    rows = torch.arange(4)[:, None].expand(4, 8)
    assert same(drawn.gather(rows, drawn.slots), drawn)
    with pytest.raises(ValueError, match="share one size"):
        drawn.gather(torch.tensor([[0, 2] * 4]), ["x"])
    with pytest.raises(ValueError, match="choice must be"):
        drawn.gather(rows, ["x"])


def test_cat_undoes_select_and_take_picks_images(drawn: ViewParams) -> None:
    assert same(ViewParams.cat([drawn.select(drawn.slots[:1]), drawn.select(drawn.slots[1:])]), drawn)
    some = drawn.take(torch.tensor([5, 1]))
    assert some.index.tolist() == [5, 1]
    assert torch.equal(some.top, drawn.top[:, [5, 1]])
    with pytest.raises(ValueError, match="same images"):
        ViewParams.cat([some, drawn])
    with pytest.raises(ValueError, match="must differ"):
        ViewParams.cat([drawn, drawn])
    with pytest.raises(KeyError, match="local_7"):
        drawn.select(["local_7"])
    with pytest.raises(ValueError, match="expected"):
        replace(drawn, hue=drawn.hue[:2])


def test_moving_keeps_every_value(drawn: ViewParams) -> None:
    moved = drawn.to("meta")
    for name in FIELDS:
        assert getattr(moved, name).dtype == getattr(drawn, name).dtype
        assert getattr(moved, name).shape == getattr(drawn, name).shape
    assert drawn.to("cpu") is drawn


def test_boxes_in_fractions_and_iou() -> None:
    record = boxes(
        top=[[0, 10, 0], [0, 30, 50]], left=[[0, 20, 0], [0, 40, 100]], h=[[100, 40, 50], [100, 40, 50]],
        w=[[200, 40, 100], [200, 40, 100]],
    )  # fmt: skip
    assert record.box_norm()[0, 1].tolist() == pytest.approx([0.1, 0.1, 0.3, 0.5])
    assert record.iou("a", "b").tolist() == pytest.approx([1.0, 400 / 2800, 0.0])
    assert torch.equal(record.iou("a", "b"), record.iou("b", "a"))


def test_overlapping_patches_by_hand() -> None:
    # b is the right half of a: its two columns lie in a's right column; mirrored, they come in the other order.
    columns = {"top": [[0], [0]], "left": [[0], [100]], "h": [[100], [100]], "w": [[200], [100]]}
    straight = boxes(**columns, flip=[[False], [False]]).overlap_patches("a", "b", (1, 2), (1, 2))
    mirrored = boxes(**columns, flip=[[True], [False]]).overlap_patches("a", "b", (1, 2), (1, 2))
    assert straight[0].tolist() == [[False, False], [True, True]]
    assert mirrored[0].tolist() == [[True, True], [False, False]]


def test_overlapping_patches_equal_rasterised_ones(drawn: ViewParams) -> None:
    """Paint every cell onto a fine raster of the source and compare pair by pair."""
    grid_a, grid_b, fine = (3, 5), (2, 4), 8
    got = drawn.overlap_patches("global_a", "local_2", grid_a, grid_b)
    for n in range(8):
        masks = []
        for slot, (rows, columns) in (("global_a", grid_a), ("local_2", grid_b)):
            v = drawn.slot(slot)
            top, left, h, w = (float(getattr(drawn, name)[v, n]) for name in ("top", "left", "h", "w"))
            y = (torch.arange(96 * fine) + 0.5) / fine
            x = (torch.arange(80 * fine) + 0.5) / fine
            row, column = ((y - top) / h * rows).floor(), ((x - left) / w * columns).floor()
            column = columns - 1 - column if drawn.flip[v, n] else column
            masks.append((row[None] == torch.arange(rows)[:, None], column[None] == torch.arange(columns)[:, None]))
        (rows_a, columns_a), (rows_b, columns_b) = masks
        down = (rows_a[:, None] & rows_b[None]).sum(-1) / fine
        across = (columns_a[:, None] & columns_b[None]).sum(-1) / fine
        painted = (down[:, None, :, None] * across[None, :, None, :]).reshape(15, 8)
        # Slivers thinner than the raster may be missed by it, never the other way round.
        assert not ((painted > 0) & ~got[n]).any()
        assert (got[n] & (painted == 0)).float().mean() < 0.05
    assert torch.equal(got, drawn.overlap_patches("local_2", "global_a", grid_b, grid_a).mT)


def test_rows_are_plain(drawn: ViewParams) -> None:
    rows = replace(drawn, extras={"op": torch.zeros(4, 8, 2)}).to_rows()
    assert len(rows) == 32
    row = rows[8 + 3]
    assert (row["slot"], row["index"], row["size"]) == ("global_b", 3, (48, 40))
    assert row["top"] == int(drawn.top[1, 3])
    assert row["op"] == [0.0, 0.0]
    assert {type(value) for value in row.values()} <= {int, float, bool, str, tuple, list}
