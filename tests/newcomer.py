"""What a newcomer does: types a command on a folder of photographs, and reads one line when it is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tiny import Command, tiles

# A run of seconds; keys as on the command line.
TINY = {
    "train.steps": 4,
    "train.batch": 8,
    "train.threads": 1,
    "train.precision": "float32",
    "backbone.width": 32,
    "backbone.depth": 1,
    "views.size": 32,
    "views.locals": 2,
    "monitor.knn": 40,
    "monitor.probe": 16,
}
WORDS = [f"{key}={value}" for key, value in TINY.items()]


def photo_folder(folder: Path, count: int = 48, side: int = 40) -> Path:
    """An ordinary folder: two classes of PNG tiles of photographs."""
    for number, tile in enumerate(tiles(count, (side, side))):
        place = folder / ("cats" if number % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(place / f"{number:03}.png")
    return folder


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed on both outputs."""

    code: int
    text: str

    def refusal(self) -> str:
        """The one line of a refused command, without its prefix."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        assert self.code == 2, self.text
        assert len(lines) == 1, self.text
        assert lines[0].startswith("belvedere: "), self.text
        return lines[0].removeprefix("belvedere: ")


def belvedere(folder: Path, *arguments: object) -> Said:
    """`belvedere ARGUMENTS` in a process forked from one with torch; `folder` takes its output and its cache."""
    command = Command([str(word) for word in arguments], folder / "said.txt", folder / "cache")
    code = command.wait()
    return Said(code, command.output)


def without_torch(*arguments: str) -> Said:
    """`belvedere ARGUMENTS` in a fresh process in which importing torch is an error."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['belvedere', *sys.argv[1:]]; "
        "from belvedere.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=os.environ
    )
    return Said(done.returncode, done.stdout + done.stderr)


def finished_run(place: Path) -> str:
    """Make `photos` and a run `run` on them in a folder; what the command said."""
    photo_folder(place / "photos")
    said = belvedere(place, "pretrain", place / "photos", "--out", place / "run", *WORDS)
    assert said.code == 0, said.text
    return said.text
