"""The ledger of docs/benchmarks.md: when, at which commit, on what and by which command each result was measured.

    python benchmarks/ledger.py

A row a file or folder of benchmarks/results, of what the files say. Files from before they had dates take that of the
commit that they name, where the history has it: the code's date, of which the run is later.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cifar_runs import ROOT, write_between

UNKNOWN = "not recorded"
# Where somebody's files were says nothing of the numbers.
PLACES = re.compile(r" --(archives|work|results|page|out) \S+")


def commit_dates() -> dict[str, str]:
    """The day of every commit of this history; a shallow clone knows only some."""
    log = subprocess.run(["git", "log", "--format=%H %cs"], cwd=ROOT, capture_output=True, text=True).stdout
    return dict(line.split() for line in log.splitlines())


def table(results: Path, dates: Mapping[str, str]) -> str:
    """Markdown: a row a file or folder, given the days of commits."""
    rows = ["| results | date | commit | machine | command | seeds |", "|---|---|---|---|---|---|"]
    for path in sorted(results.iterdir()):
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if files and path.suffix in ("", ".json"):
            rows.append(f"| {' | '.join([_link(path), *_row(files, dates)])} |")
    return "\n".join(rows)


def _row(files: list[Path], dates: Mapping[str, str]) -> list[str]:
    """Date, commit, machine, command and seeds of one or more files of a benchmark."""
    found = [json.loads(file.read_text()) for file in files]
    machines = [one.get("machine", {}) if isinstance(one, dict) else {} for one in found]
    days = {str(one.get("date") or dates.get(one.get("commit", ""), ""))[:10] for one in machines}
    commits = {one["commit"][:8] + "+" * one.get("dirty", False) for one in machines if "commit" in one}
    commands = {_command(one["command"]) for one in machines if "command" in one}
    scripts = {" ".join(command.split()[:2]) for command in commands}
    shown = commands if len(commands) == 1 else {f"{script} ..." for script in scripts}
    seeds = {seed for one in found for seed in _seeds(one)}
    return [
        _days(days),
        ", ".join(sorted(commits)) or UNKNOWN,
        "; ".join(sorted({_machine(one) for one in machines if one})) or UNKNOWN,
        ", ".join(f"`{command}`" for command in sorted(shown)) or UNKNOWN,
        ", ".join(map(str, sorted(seeds))) or UNKNOWN,
    ]


def _command(given: str) -> str:
    return re.sub(r"^python (benchmarks/)?", "python benchmarks/", PLACES.sub("", given))


def _link(path: Path) -> str:
    return f"[{path.stem}](../benchmarks/results/{path.name})"


def _days(days: set[str]) -> str:
    """First to last, and whether some are not known; "" stands for these."""
    known = sorted(days - {""})
    if not known:
        return UNKNOWN
    text = known[0] if len(known) == 1 else f"{known[0]} to {known[-1]}"
    return f"{text}, some {UNKNOWN}" if "" in days else text


def _machine(about: Mapping[str, Any]) -> str:
    parts = [about["cpu"], f"{about['cores']} cores"]
    parts += [f"{about['memory_gb']:.0f} GB"] if "memory_gb" in about else []
    return ", ".join(parts + about.get("instructions", []))


def _seeds(found: Any) -> Iterator[int]:
    """Every number that stands under the name of a seed."""
    for key, value in found.items() if isinstance(found, dict) else ():
        if key in ("seed", "train.seed") and isinstance(value, int):
            yield value
    for value in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from _seeds(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    given = parser.parse_args()
    write_between(given.page, "ledger", "ledger.py", table(given.results, commit_dates()))


if __name__ == "__main__":
    main()
