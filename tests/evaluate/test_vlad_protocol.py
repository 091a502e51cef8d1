"""Pages as vectors of their patches: pooling, ink, whitening without the test pages, chance, and what is refused."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from belvedere.backbones.build import build_backbone
from belvedere.evaluate.contract import Result
from belvedere.evaluate.metrics.vlad import foreground, reranked, vlad, whitened
from belvedere.evaluate.protocols import vlad as protocol
from belvedere.evaluate.protocols._pages import pages_of
from belvedere.evaluate.protocols.retrieval import average_precision
from belvedere.evaluate.protocols.vlad import chance
from belvedere.evaluate.suite import Given, evaluate_encoder, prepare
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.cutting import Cutting
from belvedere.images.source import find_images
from belvedere.images.tiles import cut
from belvedere.measure.encoder import Encoder
from belvedere.report.protocols import draw_results

Make = Callable[..., Canvases]


def write_pages(root: Path, hands: int, pages: int, dark: bool = False, first: int = 0) -> Path:
    """Strokes across 64 px pages: every hand has a slant and a thickness of its own, every page its own places."""
    y, x = np.mgrid[:64, :64]
    for hand in range(first, first + hands):
        slant, thick = np.tan((hand % 7 - 3) / 4), 1 + hand % 3
        for page in range(pages):
            rng = np.random.default_rng(100 * hand + page)
            ink = np.zeros((64, 64), bool)
            for _ in range(9):
                top, left = rng.integers(4, 44), rng.integers(10, 54)
                ink |= (abs(x - left - slant * (y - top)) < thick) & (y >= top) & (y < top + 16)
            (root / f"hand{hand:02}").mkdir(parents=True, exist_ok=True)
            image = np.where(ink ^ dark, 240, 10).astype(np.uint8)
            Image.fromarray(image).save(root / f"hand{hand:02}" / f"page{page}.png")
    return root


def network(size: int = 32) -> Encoder:
    backbone = build_backbone("vit_tiny", size=(size, size), channels=1, patch=8, width=32, depth=2, heads=2, seed=3)
    return Encoder(backbone, (size, size), [0.5], [0.25])


def opened(place: Path, tile: int = 0) -> Canvases:
    return open_canvases(cut(find_images(place), Cutting(tile)), 64, cache_dir=place.parent, workers=1, progress=False)


def asked(train: Canvases, test: Canvases, encoder: Encoder | None = None, **options: object) -> Result:
    (result,) = evaluate_encoder(encoder or network(), Given(train, test, options={"vlad": options}), ["vlad"])
    return result


def test_foreground_patches_of_a_page_beat_the_global_vector_and_chance(tmp_path: Path) -> None:
    train = opened(write_pages(tmp_path / "train", 8, 3), tile=32)
    test = opened(write_pages(tmp_path / "test", 10, 3, first=8), tile=32)
    result = asked(train, test, min_ink=4)
    pixels, chance_ = result.metrics["pixels"], result.settings["chance_percent"]
    assert result.settings["test_pages"] == result.settings["queries"] == 30  # of four windows each
    assert result.settings["training_pages"] == 24
    assert result.settings["ink"] == "light"
    assert result.settings["whitened_to"] == 8
    assert 5 < result.settings["patches"]["run"]["with_ink_percent"] < 90
    assert pixels["map"].value > pixels["map_global"].value > chance_["map"]
    assert chance_["map"] < pixels["top1"].low
    assert set(result.metrics) == {"run", "untrained", "pixels"}
    kinds = ("", "_plain", "_reranked", "_global", "_global_whitened")
    assert set(result.items["run"]) == {f"{metric}{kind}" for metric in ("map", "top1") for kind in kinds}


def test_dark_ink_is_found_and_inverting_everything_changes_no_patch(tmp_path: Path) -> None:
    numbers = []
    for dark in (False, True):
        train = opened(write_pages(tmp_path / f"train{dark}", 5, 3, dark))
        test = opened(write_pages(tmp_path / f"test{dark}", 5, 3, dark, first=5))
        result = asked(train, test, min_ink=4)
        assert result.settings["ink"] == ("dark" if dark else "light")
        numbers.append(result.settings["patches"]["pixels"]["with_ink_percent"])
    assert numbers[0] == pytest.approx(numbers[1], rel=0.05)  # levels 10 and 240 are not as far from the threshold


def test_whitening_reads_training_pages_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = opened(write_pages(tmp_path / "train", 6, 3))
    test = opened(write_pages(tmp_path / "test", 6, 3, first=6))
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spied(fitted: torch.Tensor, vectors: torch.Tensor, dims: int, seed: int) -> torch.Tensor:
        calls.append((fitted, vectors))
        return whitened(fitted, vectors, dims, seed)

    monkeypatch.setattr(protocol, "whitened", spied)
    for pages in (test.subset(np.arange(9)), test):
        prepared = prepare(network(), Given(train, pages, floors=()), ["vlad"], "cpu", None)
        assert "error" not in prepared.run()[0].settings
    (few, every) = (calls[:2], calls[2:])  # patches, then the global vector
    for (fitted, vectors), (again, more) in zip(few, every, strict=True):
        assert len(fitted) == 18
        assert torch.equal(fitted, again)
        assert torch.equal(vectors, more[:9])
        white = whitened(fitted, more, 6, seed=0)
        assert torch.allclose(whitened(fitted, vectors, 6, seed=0), white[:9], atol=1e-5)


def test_pages_are_files_folders_or_groups(tmp_path: Path) -> None:
    write_pages(tmp_path / "p", 2, 2)
    tiles = opened(tmp_path / "p", tile=32)
    assert tiles.labels is not None
    pages = pages_of(tiles, tiles.labels, "file")
    assert pages.names == ["hand00/page0.png", "hand00/page1.png", "hand01/page0.png", "hand01/page1.png"]
    assert [len(rows) for rows in pages.rows] == [4] * 4
    assert pages.labels.tolist() == [0, 0, 1, 1]
    assert pages_of(tiles, tiles.labels, "folder").names == ["hand00", "hand01"]
    assert pages_of(tiles, tiles.labels, "group").names == pages.names  # tiles of one file belong together
    features = torch.eye(16)
    assert torch.equal(pages.means(features), torch.eye(4).repeat_interleave(4, 1) / 4)


def test_what_cannot_be_asked_is_said_in_words(tmp_path: Path, make_folder: Make, encoder: Encoder) -> None:
    train = opened(write_pages(tmp_path / "train", 4, 2))
    alone = opened(write_pages(tmp_path / "alone", 4, 1))

    def error(train: Canvases, test: Canvases, encoder: Encoder | None = None, **options: object) -> str:
        return str(asked(train, test, encoder, **options).settings["error"])

    assert error(train, alone).startswith("vlad: no test page has another one")
    assert error(train, train, page="group").startswith("vlad.page: the images have no groups")
    assert "takes more training pages" in error(train, train, dims=8)
    assert "lower vlad.min_ink" in error(train, train, min_ink=65)
    flat = make_folder({"coffee": 4, "rocket": 4})
    mixed = flat.subset(np.arange(8))
    assert mixed.labels is not None
    mixed.labels[:2] = [1, 1]
    assert "different labels, so they are not one page" in error(mixed, mixed, encoder, page="folder")


def test_pages_without_ink_are_left_out_and_counted(tmp_path: Path) -> None:
    train = opened(write_pages(tmp_path / "train", 5, 3))
    place = write_pages(tmp_path / "test", 5, 3, first=5)
    faint = np.full((64, 64), 10, np.uint8)
    faint[3, 3] = 100
    Image.fromarray(faint).save(place / "hand05" / "page0.png")
    result = asked(train, opened(place), min_ink=4)
    assert (result.settings["test_pages"], result.settings["without_ink"]) == (14, 1)
    assert all(len(values) == 14 for own in result.items.values() for values in own.values())


@settings(max_examples=20)
@given(partners=st.integers(1, 4), others=st.integers(4, 9), seed=st.integers(0, 1000))
def test_chance_is_what_drawn_orders_give(partners: int, others: int, seed: int) -> None:
    same = torch.zeros(4000, others, dtype=torch.bool)
    order = torch.rand(same.shape, generator=torch.Generator().manual_seed(seed)).argsort(1)
    same.scatter_(1, order[:, :partners], True)
    drawn = average_precision(same, torch.full((4000,), partners))
    assert drawn.mean() == pytest.approx(chance(partners, others), abs=4 * drawn.std() / 4000**0.5 + 1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_vectors_have_length_one_and_no_order(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens, centers = torch.randn(30, 6, generator=generator), torch.randn(4, 6, generator=generator)
    for gamma in (None, 10.0):
        one = vlad(tokens, centers, gamma)
        assert one.norm().item() == pytest.approx(1)
        assert torch.allclose(one, vlad(tokens.flip(0), centers, gamma), atol=1e-4)
    # Generalised max pooling does not count what comes often: a token ten times is nearly a token once.
    burst = torch.cat([tokens, tokens[:1].expand(200, -1)])
    moved = [float((vlad(burst, centers, gamma) - vlad(tokens, centers, gamma)).norm()) for gamma in (None, 0.1)]
    assert moved[1] < moved[0]
    white = whitened(torch.randn(40, 6, generator=generator), torch.randn(9, 6, generator=generator), 4, seed)
    assert torch.allclose(white.norm(dim=1), torch.ones(9))
    assert torch.allclose(reranked(white, 3).norm(dim=1), torch.ones(9))


def test_cells_on_the_grid_are_counted_where_they_lie() -> None:
    levels = torch.zeros(1, 3, 8, 12)
    levels[:, :, 5, 9] = 255
    assert foreground(levels, (2, 3), 1, 128, "light")[0].nonzero().flatten().tolist() == [5]
    assert foreground(levels, (2, 3), 16, 128, "dark")[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_the_picture_shows_pages_and_what_was_found(tmp_path: Path) -> None:
    train = opened(write_pages(tmp_path / "train", 5, 3))
    test = opened(write_pages(tmp_path / "test", 4, 3, first=5))
    prepared = prepare(network(), Given(train, test), ["vlad"], "cpu", None)
    results = prepared.run()
    draw_results(tmp_path / "out", results, prepared.data)
    with Image.open(tmp_path / "out" / "vlad.webp") as picture:
        assert (np.asarray(picture.convert("RGBA"))[..., 3] > 0).mean() > 0.4
    with (tmp_path / "out" / "vlad.csv").open(encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == 6 * 6
    assert all((row["label"] == row["its_label"]) == (row["same"] == "1") for row in rows)
    assert all(row["page"] != row["found"] for row in rows)
