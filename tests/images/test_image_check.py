"""The report on a set of images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from belvedere.errors import UserError
from belvedere.images.canvases import open_canvases
from belvedere.images.check import check
from belvedere.images.source import find_images


def test_report_agrees_with_what_a_run_would_open(photos: Path, tmp_path: Path) -> None:
    (photos / "cats/copy of 0.jpg").write_bytes((photos / "cats/0.jpg").read_bytes())
    (photos / "dogs/broken.jpg").write_bytes(b"")
    found = check(photos, side=64, progress=False)
    canvases = open_canvases(find_images(photos), 64, cache_dir=tmp_path, progress=False)
    assert found.count == len(canvases) == 7
    assert found.skipped == canvases.skipped
    assert (found.mean, found.std) == canvases.statistics()
    assert found.canvas_bytes == int(canvases.sizes.prod(axis=1).sum()) * 3
    assert (found.short_side.low, found.short_side.median, found.long_side.high) == (80, 90, 120)
    assert found.aspect.low == pytest.approx(0.8)
    assert (found.formats, found.modes, found.channels) == ({"JPEG": 7}, {"RGB": 7}, 3)
    assert found.duplicates == [["cats/0.jpg", "cats/copy of 0.jpg"]]
    assert (found.classes, found.unlabelled) == ({"cats": 5, "dogs": 2}, 0)
    assert found.refused is None
    assert check(photos, labels="none", progress=False).classes == {}
    text = "\n".join(found.lines())
    for part in (
        "7 usable images, 1 set aside",
        "dogs/broken.jpg: empty file",
        "cats/0.jpg = cats/copy of 0.jpg",
        "classes: cats 5, dogs 2",
        "2 classes from the first folder level",
    ):
        assert part in text
    assert json.loads(json.dumps(found.to_dict()))["skipped"] == [{"name": "dogs/broken.jpg", "reason": "empty file"}]


def test_nothing_is_written(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    check(photos, progress=False)
    assert not (tmp_path / "cache").exists()


def test_arrays_without_labels_and_their_depth(gray: NDArray[np.uint8]) -> None:
    found = check(np.stack([gray, gray, gray.T]).astype(np.uint16) * 16, progress=False)
    assert found.duplicates == [["0000000", "0000001"]]
    assert found.integer_range == (0, 4095)
    text = "\n".join(found.lines())
    assert "whole numbers above 8 bits: 0 to 4095 becomes 0 to 255" in text
    assert "no labels found" in text
    assert "1 channel\n" in text


def test_mostly_broken_set_is_reported_and_a_hopeless_one_refused(photos: Path) -> None:
    for path in (photos / "cats").iterdir():
        path.write_bytes(b"")
    found = check(photos, progress=False)
    assert (found.count, len(found.skipped)) == (2, 4)
    assert found.lines()[-1].endswith("4 of 6 images cannot be used: 4 x empty file, as cats/0.jpg")
    with pytest.raises(UserError, match="3 of 3 images cannot be used: 3 x smaller than 8 px"):
        check(np.zeros((3, 5, 9), np.uint8), progress=False)
    for path in (photos / "dogs").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of 6 images can be read"):
        check(photos, progress=False)


def test_names_command_nothing_to_the_terminal(photos: Path) -> None:
    (photos / "cats" / "\x1b[2J.png").write_bytes(b"")
    (photos / "\x1b[31mred").mkdir()
    (photos / "dogs" / "4.jpg").rename(photos / "\x1b[31mred" / "4.jpg")
    told = "\n".join(check(photos, progress=False).lines())
    assert "\x1b" not in told
    assert r"\x1b[2J.png" in told
    assert r"\x1b[31mred 1" in told


def test_long_lists_are_shortened(gray: NDArray[np.uint8], tmp_path: Path) -> None:
    labels = np.arange(30) // 2
    np.savez(tmp_path / "a.npz", x=np.stack([gray[i : i + 16, :16] for i in range(30)]), y=labels)
    text = "\n".join(check(tmp_path / "a.npz", progress=False).lines())
    assert "15 classes from the array" in text
    assert "9 2, and 5 more" in text
