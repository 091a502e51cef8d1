"""The retrieval benchmark: its page says what its files say, and it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import retrieval

ROOT = Path(__file__).parents[2]


def test_the_page_says_what_the_files_say() -> None:
    page = (ROOT / "docs" / "retrieval.md").read_text(encoding="utf-8")
    written = page.partition("written by benchmarks/retrieval.py -->\n")[2].partition("\n<!-- end of retrieval")[0]
    assert written == retrieval.table(ROOT / "benchmarks" / "results" / "retrieval")


@pytest.mark.slow
def test_a_benchmark_of_seconds(
    shared_data: Path,
    few_cifar10: Path,
    few_imagenette: Path,
    script: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(retrieval, "MARGINS", (0.5, 0.8))
    monkeypatch.setitem(retrieval.PLACES, "grocery", (*retrieval.PLACES["grocery"][:2], 8))
    archives = tmp_path / "archives"
    archives.mkdir()
    few = {few_cifar10, few_imagenette}
    for name in retrieval.ARCHIVES:
        place = next((folder for folder in few if (folder / name).exists()), shared_data)
        (archives / name).symlink_to(place / name)
    page = tmp_path / "page.md"
    page.write_text("<!-- retrieval, written by benchmarks/retrieval.py -->\n<!-- end of retrieval -->\n")
    words = ["--steps", "2", "--only", "coil20", "--lambdas", "0.35", "--seeds", "0", "--device", "cpu"]
    words += ["--archives", str(archives), "--work", str(tmp_path / "work")]
    script(retrieval, *words, "--results", str(tmp_path), "--page", str(page))
    text = page.read_text()
    assert "| IRT, lambda 0.35 (1 seed)" in text
    assert "| off the shelf |" in text
    assert text.count("| 0.8 |") == 1
