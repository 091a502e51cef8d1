"""The growth benchmark in small: its tree is what it says, its processes measure what they are asked to."""

from __future__ import annotations

from pathlib import Path

import growth
from belvedere.images.source import find_images


def test_trees_have_as_many_images_as_asked_for(tmp_path: Path) -> None:
    folder = growth.tree(tmp_path / "some", 1203)
    assert len(find_images(folder, labels="none")) == 1203
    assert sorted(path.name for path in folder.iterdir()) == ["00000", "00001"]
    more = growth.linked(tmp_path / "more", folder, 2410)
    assert len(find_images(more, labels="none")) == 2410


def test_what_is_measured(tmp_path: Path) -> None:
    folder = growth.tree(tmp_path / "some", 30)
    first = growth.measured("start", folder, tmp_path / "cache")
    (cache,) = (tmp_path / "cache" / "canvases").glob("*.bin")
    assert cache.stat().st_size > 30 * 32 * 32 * 3
    assert first["seconds"] > 0
    assert set(first) == {"seconds", "processor", "memory_mb"}


def test_the_table_tells_costs_an_image() -> None:
    one = {"seconds": 0.25, "processor": 0.5, "memory_mb": 12.4}
    text = growth.table({"growth": {"5000": dict.fromkeys(("listing", "first_start", "second_start", "reading"), one)}})
    assert text.splitlines()[-1] == "| 5,000 | 100 µs | 100 µs | 4 µs | 0.2 s | 12 MiB, 12 MiB |"
