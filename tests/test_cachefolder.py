"""Nothing is written outside the output folder and the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from belvedere.cachefolder import keep_matplotlib_inside
from newcomer import WORDS, photo_folder


@pytest.mark.slow
def test_a_run_leaves_an_empty_home_empty(tmp_path: Path) -> None:
    photos, home, cache = photo_folder(tmp_path / "photos"), tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    others = {name: x for name, x in os.environ.items() if not name.startswith(("XDG_", "MPL", "BELVEDERE_"))}
    done = subprocess.run(
        [sys.executable, "-m", "belvedere", "pretrain", str(photos), "--out", str(tmp_path / "run"), *WORDS],
        env={**others, "HOME": str(home), "BELVEDERE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
    assert list((cache / "matplotlib").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "home", "cache", "run"}


def test_what_the_user_says_of_matplotlib_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLCONFIGDIR", "mine")
    keep_matplotlib_inside()
    assert os.environ["MPLCONFIGDIR"] == "mine"
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv("MPLCONFIGDIR")
    (tmp_path / "cache").write_text("no folder")
    keep_matplotlib_inside()
    assert "MPLCONFIGDIR" not in os.environ
    (tmp_path / "cache").unlink()
    keep_matplotlib_inside()
    assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "cache" / "matplotlib")
