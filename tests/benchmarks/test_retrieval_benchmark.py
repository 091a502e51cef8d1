"""The retrieval benchmark: its page says what its files say, and it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import retrieval

ROOT = Path(__file__).parents[2]


def test_the_page_says_what_the_files_say() -> None:
    page = (ROOT / "docs" / "retrieval.md").read_text(encoding="utf-8")
    written = page.partition("written by benchmarks/retrieval.py -->\n")[2].partition("\n<!-- end of retrieval")[0]
    assert written == retrieval.table(ROOT / "benchmarks" / "results" / "retrieval")


@pytest.mark.slow
def test_a_benchmark_of_seconds(shared_data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- retrieval, written by benchmarks/retrieval.py -->\n<!-- end of retrieval -->\n")
    command = [sys.executable, str(ROOT / "benchmarks" / "retrieval.py"), "--steps", "2", "--only", "coil20"]
    command += ["--lambdas", "0.35", "--seeds", "0", "--archives", str(shared_data), "--device", "cpu"]
    command += ["--work", str(tmp_path / "work"), "--results", str(tmp_path), "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "| IRT, lambda 0.35 (1 seed)" in text
    assert "| off the shelf |" in text
    assert text.count("| 0.8 |") == 1
