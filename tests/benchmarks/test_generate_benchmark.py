"""The benchmark of `belvedere generate` reads a run's log as it was written."""

from __future__ import annotations

import json
from pathlib import Path

from generate import looks, table

ROOT = Path(__file__).parents[2]


def test_the_page_says_what_the_file_says() -> None:
    page = (ROOT / "docs" / "generate.md").read_text(encoding="utf-8")
    written = page.partition("written by benchmarks/generate.py -->\n")[2].partition("\n<!-- end of generate")[0]
    assert written == table(ROOT / "benchmarks" / "results" / "generate")


def step(number: int, loss: float) -> dict[str, float]:
    return {"step": number, "loss": loss, "loss_generator": 1.0, "r1": 0.1, "consistency": 0.2, "seconds": 0.5}


def look(number: int, fid: float) -> dict[str, object]:
    return {"step": number, "look": {"spread": 0.9, "fid": fid, "kid": 0.5}, "health": "healthy"}


def test_a_look_has_the_mean_losses_of_the_steps_before_it(tmp_path: Path) -> None:
    log = [look(0, 60) | {"floor": {"fid": 0.5, "kid": 0.0}}, step(0, 1.0), step(1, 2.0), look(2, 30)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in log))
    found, floor = looks(tmp_path)
    assert [(one["step"], one["fid"], one.get("loss")) for one in found] == [(0, 60, None), (2, 30, 1.5)]
    assert floor == {"fid": 0.5, "kid": 0.0}
    (tmp_path / "cifar10_seed0.json").write_text(json.dumps({"looks": found, "floor": floor}))
    rows = table(tmp_path).splitlines()
    assert rows[2] == "| 0 | 60.0 | 0.50 | 0.90 |  |  |  | healthy |"
    assert rows[3].startswith("| real images | 0.5 | 0.00 |")
