"""Two hours of training while its memory, open files and threads are watched: do they stay flat?

    python benchmarks/soak.py                  # 120 minutes
    python benchmarks/soak.py --minutes 10

`belvedere pretrain` in a process of its own on CIFAR-10's training images (../shared/data), all cores, with looks, k-NN
and checkpoints as often as any run has them. Memory is the process' own (RssAnon of Linux), so not the pages of the
image cache, which the system keeps for as long as it likes. The first tenth warms up. Then a quantity is flat when its
median over the last fifth is above that over the first fifth by no more than: 2 % of memory, no open file, no thread.
Writes benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cifar_runs import ROOT, machine, unpack

SETTINGS = {
    "views.size": 32,
    "backbone.name": "vit_tiny",
    "backbone.patch": 8,
    "backbone.width": 192,
    "backbone.depth": 4,
}
MOST_GROWTH = {"memory_mb": 0.02, "files": 0.0, "threads": 0.0}


def sample(process: int) -> dict[str, float]:
    """Memory, open files and threads of a process and of its children now."""
    found = dict.fromkeys(MOST_GROWTH, 0.0)
    for one in (process, *_children(process)):
        facts = dict(line.split(":", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines())
        found["memory_mb"] += int(facts["RssAnon"].split()[0]) / 1024
        found["threads"] += int(facts["Threads"])
        found["files"] += len(os.listdir(f"/proc/{one}/fd"))
    return found


def _children(process: int) -> list[int]:
    files = Path(f"/proc/{process}/task").glob("*/children")
    direct = [int(number) for file in files for number in file.read_text().split()]
    return [one for child in direct for one in (child, *_children(child))]


def judge(samples: list[dict[str, float]]) -> dict[str, Any]:
    """First and last median of each quantity after the warm-up, and whether it stayed flat."""
    warm = samples[len(samples) // 10 :]
    fifth = max(1, len(warm) // 5)
    found = dict[str, Any]()
    for name, share in MOST_GROWTH.items():
        first, last = (statistics.median(one[name] for one in part) for part in (warm[:fifth], warm[-fifth:]))
        highest = max(one[name] for one in samples)
        found[name] = {"first": first, "last": last, "highest": highest, "flat": last <= first * (1 + share)}
    return found


def watch(command: list[str], log: Path, seconds: float, note: Path) -> list[dict[str, float]]:
    """Run a command and sample it every so many seconds while it trains; `note` gets a line a sample, as it is taken.

    Raises:
        SystemExit: when it fails.
    """
    samples: list[dict[str, float]] = []
    began = time.monotonic()
    with log.open("w") as said, note.open("w") as noted:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        while process.poll() is None:
            time.sleep(seconds)
            try:
                samples.append({"at": round(time.monotonic() - began, 1), **sample(process.pid)})
            except (FileNotFoundError, ProcessLookupError, KeyError):  # it ended, or a child did, in between
                continue
            noted.write(json.dumps(samples[-1]) + "\n")
            noted.flush()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}; see {log}")
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--recipe", default="dino")
    parser.add_argument("--every", type=float, default=10, help="seconds between samples")
    parser.add_argument("--images", type=Path, help="a folder of images instead of CIFAR-10")
    parser.add_argument("--archives", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "soak.json")
    given = parser.parse_args()
    images = given.images or unpack(given.archives, given.work)[0]
    run, about = given.work / "soak", machine()
    words = [f"{key}={value}" for key, value in SETTINGS.items()]
    train = ["pretrain", str(images), "--recipe", given.recipe, "--minutes", str(given.minutes), "--out", str(run)]
    command = [sys.executable, "-m", "belvedere", *train, *words]
    samples = watch(command, given.work / "soak.txt", given.every, given.work / "soak_samples.jsonl")
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # What follows the last look is the report. A run that was stopped by a signal had its last look before.
    last = max(entry.get("elapsed", 0.0) for entry in log)
    samples = [one for one in samples if one["at"] <= last]
    found = judge(samples)
    text = {
        "machine": about,
        "minutes": given.minutes,
        "trained_seconds": last,
        "recipe": given.recipe,
        "settings": SETTINGS,
        "steps": len(log),
        "flat": all(one["flat"] for one in found.values()),
        "quantities": found,
        "samples": samples[:: max(1, len(samples) // 240)],
    }
    given.out.write_text(json.dumps(text, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    if not text["flat"]:
        raise SystemExit("not flat")


if __name__ == "__main__":
    main()
