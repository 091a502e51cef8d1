"""The benchmark of the views compares like with like, and says what it found."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

import speed
import speed_cuda
from cifar_runs import ROOT
from speed import MAKERS, OURS, PLAIN, WORKLOADS, Workload, jpegs, law, measure, read, table

# Those that need no installation of their own.
HERE = (OURS, PLAIN, "torchvision, Pillow", "torchvision v2")


def test_peers_draw_from_our_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under one law a distance passes 1.63 sqrt(2 / n), here .115, once in a hundred times; all draws are seeded."""
    monkeypatch.setattr(speed, "EPOCHS", itertools.count())
    torch.manual_seed(0)
    random.seed(0)
    reference = law(MAKERS[OURS], 400)
    for name in HERE:
        for what, values in law(MAKERS[name], 400).items():
            assert ks_2samp(reference[what], values).statistic < 0.14, (name, what)
    # And another law is told apart: views that were mirrored.
    assert ks_2samp(reference["left"], reference["right"]).statistic > 0.3


def test_every_peer_makes_the_views_of_every_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MAKERS", {name: MAKERS[name] for name in HERE})
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(speed, "WARM", 0)
    noise = np.random.default_rng(0).integers(0, 255, (4, 40, 40, 3), np.uint8)
    for randaugment in (False, True):
        times = measure(Workload("dino", 4, 40, WORKLOADS[1].settings, randaugment), lambda: noise)
        assert set(times) == set(HERE)
        assert all(len(found) == 1 and found[0] > 0 for found in times.values())


def test_threads_are_timed_beside_workers_that_end_with_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUNDS", "TIMED", "TIMED_WORKERS"):
        monkeypatch.setattr(speed, name, 1)
    noise = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3), np.uint8)
    threads = torch.get_num_threads()
    times = speed.measure_threads(WORKLOADS[1], noise, 2)
    assert list(times) == [f"{OURS}, 1", f"{OURS}, 2", *speed.IN_WORKERS]
    assert all(len(found) == 1 and found[0] > 0 for found in times.values())
    assert torch.get_num_threads() == threads
    assert not torch.multiprocessing.active_children()


def test_as_many_threads_as_told_make_the_views() -> None:
    before, given = torch.get_num_threads(), np.zeros((1, 1, 1, 3), np.uint8)
    threads = [
        torch.get_num_threads() for count in (1, 2) for _ in next(speed.in_threads(lambda _: [given], given, count))
    ]
    torch.set_num_threads(before)
    assert threads == [1, 2]


def test_the_table_of_threads_tells_ratios() -> None:
    times = {f"{OURS}, 1": [2.0, 1.9], f"{OURS}, 2": [1.0, 1.0]} | {name: [30.0, 31.0] for name in speed.IN_WORKERS}
    assert speed.threads_table({"threads": 2, "seconds": {"simclr 2x32": times}}).splitlines() == [
        "| views, against 2 threads | one thread | torchvision, Pillow, 2 workers | torchvision v2, 2 workers |",
        "| --- | --- | --- | --- |",
        "| simclr 2x32 | 1.95 (1.90 to 2.00) | 30.50 (30.00 to 31.00) | 30.50 (30.00 to 31.00) |",
    ]
    assert set(speed.PARALLEL) <= {one.name for one in WORKLOADS}


def test_jpeg_files_are_of_the_size_that_is_told() -> None:
    files = jpegs(5)
    assert read(files).shape == (5, 350, 500, 3)
    assert len(set(files)) == 5


def test_the_table_tells_ratios() -> None:
    text = table({"seconds": {"simclr 2x32": {OURS: [1.0, 2.0, 1.0], "kornia": [3.0, 5.0, 4.0]}}})
    (row,) = [line for line in text.splitlines() if line.startswith("| simclr")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "simclr 2x32",
        "",
        "",
        "",
        "3.0 (2.5 to 4.0)",
        "",
        "",
    ]


def test_the_committed_laws_agree() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "speed.json").read_text())
    assert set(found["laws"]) == set(MAKERS)
    assert max(max(distances.values()) for distances in found["laws"].values()) < 0.07
    assert set(found["seconds"]) == {one.name for one in WORKLOADS}


def test_the_page_says_what_the_file_says() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    for name, text_of in speed.TABLES.items():
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        assert f"<!-- {name}, written by benchmarks/speed.py -->" in page
        assert not path.exists() or text_of(json.loads(path.read_text())) in page


@pytest.mark.slow
def test_the_script_with_two_threads(
    script: Callable[..., str], few_imagenette: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ROUNDS", "TIMED", "TIMED_WORKERS"):
        monkeypatch.setattr(speed, name, 1)
    monkeypatch.setattr(speed, "PARALLEL", ("dino 2x96+6x40",))
    page = tmp_path / "page.md"
    page.write_text("<!-- speed_threads, written by benchmarks/speed.py -->\n<!-- end of speed_threads -->\n")
    places = ("--archives", few_imagenette, "--work", tmp_path, "--results", tmp_path, "--page", page)
    script(speed, "--threads", "2", *map(str, places))
    found = json.loads((tmp_path / "speed_threads.json").read_text())
    assert tuple(found["seconds"]) == speed.PARALLEL
    assert speed.threads_table(found) in page.read_text()


def test_the_table_of_cuda_tells_shares_of_the_floor() -> None:
    """A byte is moved as fast as the copy did: .5 ms of a maker that takes 1 ms is a half; a network moves others."""
    large = {"milliseconds": {"eager": [1.0, 1.0, 9.0], speed_cuda.NETWORK: [4.0, 4.0, 4.0]}, "floor_milliseconds": 0.5}
    small = {"milliseconds": {"eager": [2.0, 2.0, 2.0]}, "floor_milliseconds": 0.1}
    for row in (large, small):
        row["floor_share"] = speed_cuda.floor_shares(row)
    assert speed_cuda.table({"images": 256, "workloads": {"large": large, "small": small}}).splitlines() == [
        "| views of 256 images | floor | eager | ViT-S/16 forward, bfloat16 |",
        "| --- | --- | --- | --- |",
        "| large | 0.50 ms | 1.00 ms (50.0%) | 4.00 ms |",
        "| small | 0.10 ms | 2.00 ms (5.0%) |  |",
    ]
    assert "<!-- speed_cuda, written by benchmarks/speed_cuda.py -->" in (ROOT / "docs" / "speed.md").read_text("utf-8")


@pytest.mark.slow
def test_the_script_for_cuda_is_tried_without_it(tmp_path: Path) -> None:
    """In a process of its own: Triton asks for its interpreter when it is imported."""
    pytest.importorskip("triton")
    out = tmp_path / "found.json"
    words = ("--device", "cpu", "--images", "1", "--only", "simclr 2x32", "--out", str(out))
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "speed_cuda.py"), *words],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["workloads"].values()
    makers = [
        "triton, replayed, bfloat16",
        "triton, drawn, bfloat16",
        "triton, drawn, float32",
        "eager, drawn, bfloat16",
        "eager, drawn, float32",
    ]
    assert list(row["milliseconds"])[:5] == makers
    assert all(time > 0 for times in row["milliseconds"].values() for time in times)
    assert list(row["floor_share"]) == list(row["milliseconds"])
    assert done.stdout.splitlines()[-3].startswith("| views of 1 images | floor | triton, replayed, bfloat16 |")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        pytest.param(
            (),
            "there is no CUDA device here; with TRITON_INTERPRET=1, --device cpu tries the script",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA"),
        ),
        (("--device", "cpu"), "--device cpu needs TRITON_INTERPRET=1 in the environment"),
    ],
)
def test_the_script_for_cuda_says_what_it_lacks(
    words: tuple[str, ...],
    why: str,
    script: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit) as refused:
        script(speed_cuda, *words)
    assert refused.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(why)
