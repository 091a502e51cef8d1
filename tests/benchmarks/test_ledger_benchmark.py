"""The ledger: its page says what the files say, and where they say nothing it says so."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

from cifar_runs import machine
from ledger import UNKNOWN, table

ROOT = Path(__file__).parents[2]


def write(path: Path, **content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def test_the_page_says_what_the_files_say() -> None:
    """But for the days of commits, which a clone without the whole history does not know."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    told = re.search(r"<!-- ledger, written by benchmarks/ledger.py -->\n(.*)\n<!-- end of ledger -->", page, re.DOTALL)
    assert told is not None
    pairs = zip(told[1].splitlines(), table(ROOT / "benchmarks" / "results", {}).splitlines(), strict=True)
    for shown, found in (([*map(str.strip, row.split("|"))] for row in pair) for pair in pairs):
        day, expected = shown.pop(2), found.pop(2)
        assert shown == found, "python benchmarks/ledger.py writes it anew"
        assert expected == day or UNKNOWN in expected


def test_a_row_a_file_or_folder(tmp_path: Path) -> None:
    about = {"cpu": "Fast 1", "cores": 2}
    old = about | {"commit": "a" * 40, "command": "python cifar10.py --seeds 0 --work /tmp/x"}
    dated = {"date": "2027-01-03T10:00:00+00:00", "memory_gb": 25.3, "instructions": ["avx2"], "dirty": True}
    write(tmp_path / "one.json", machine=old, seed=0)
    write(tmp_path / "some" / "1.json", machine=old, settings={"train.seed": 2})
    write(tmp_path / "some" / "2.json", machine=old | dated | {"command": "python benchmarks/cifar10.py"}, seed=1)
    write(tmp_path / "unknown.json", runs=[])
    link, command = "../benchmarks/results", "python benchmarks/cifar10.py"
    one, some, unknown = table(tmp_path, {"a" * 40: "2027-01-01"}).splitlines()[2:]
    assert one == f"| [one]({link}/one.json) | 2027-01-01 | aaaaaaaa | Fast 1, 2 cores | `{command} --seeds 0` | 0 |"
    machines = "Fast 1, 2 cores; Fast 1, 2 cores, 25 GB, avx2"
    commits = "aaaaaaaa, aaaaaaaa+"
    days = "2027-01-01 to 2027-01-03"
    assert some == f"| [some]({link}/some) | {days} | {commits} | {machines} | `{command} ...` | 1, 2 |"
    assert unknown == f"| [unknown]({link}/unknown.json) | {' | '.join([UNKNOWN] * 5)} |"
    assert f"| {UNKNOWN} | aaaaaaaa |" in table(tmp_path, {}).splitlines()[2]


def test_the_machine_says_what_its_name_hides() -> None:
    about = machine()
    assert datetime.fromisoformat(about["date"]).utcoffset() is not None
    assert about["memory_gb"] > 0
    assert isinstance(about["dirty"], bool)
    assert set(about["instructions"]) <= {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
