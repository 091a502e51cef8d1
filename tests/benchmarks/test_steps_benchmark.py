"""The benchmark of whole steps in small: its loops learn, and its table tells ratios."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import steps
from belvedere.views import native
from cifar_runs import ROOT
from newcomer import photo_folder
from steps import COMPILED, CPU, CUDA, OURS, SETTINGS, TINY, Peer, measure, ours, pixels_of, table, torchvision_loop

FEW = replace(CPU, batch=8, rounds=2)


def test_loops_take_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = photo_folder(tmp_path, 24)
    pixels = pixels_of(folder)
    assert pixels.dtype == np.uint8
    peers = {"torchvision": torchvision_loop(pixels, setup=FEW), "in bf16": torchvision_loop(pixels, True, FEW)}
    found = measure({OURS: ours(folder, "float32", FEW), **peers}, FEW)
    assert {name: len(seconds) for name, seconds in found.items()} == {OURS: 2, "torchvision": 2, "in bf16": 2}
    assert min(min(seconds) for seconds in found.values()) > 0


def test_a_turn_warms_up_and_its_workers_end_with_it() -> None:
    """Otherwise they would make a peer's next batches while somebody else is timed."""
    setup = replace(FEW, warm=3, timed=2, workers=1)
    pixels = np.zeros((4, 40, 40, 3), np.uint8)
    learned = list[int]()
    view = torch.zeros(1)
    loader = steps.loader_of(pixels, lambda _: (view, view), setup)
    peer = Peer(loader, lambda x0, *_: learned.append(len(x0)), setup)
    assert steps._turn(peer, setup) >= 0
    assert learned == [8] * 5  # more batches than the images fill
    assert peer.batches is None
    assert not torch.multiprocessing.active_children()


def test_on_cuda_the_issue_s_network_is_compared() -> None:
    assert (CUDA.side, CUDA.batch, CUDA.blur, CPU.blur) == (224, 256, 0.5, 0.0)
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in steps.vit(CUDA).parameters())
    assert weights == 21_665_664  # ViT-S/16 without a classifier
    turns = (CUDA.skipped + CUDA.rounds) * (CUDA.warm + CUDA.timed)
    assert turns < 1000, "as many steps as a run of ours has here"


def test_the_loss_is_nt_xent() -> None:
    """Equal pairs, all others orthogonal: ln of one and the share of the 2N - 2 others at e^(-1/T)."""
    z = torch.eye(4)
    expected = np.log(1 + 6 * np.exp(-1 / steps.TEMPERATURE))
    assert steps._nt_xent(z, z).item() == pytest.approx(expected, rel=1e-5)


def test_the_table_tells_ratios() -> None:
    times = {OURS: [1.0, 2.0, 1.0], "lightly": [3.0, 5.0, 4.0], "torchvision": [1.0, 1.0, 1.0]}
    last = table({"seconds": {"float32 for all": times}}).splitlines()[-1]
    assert last == "| float32, each its own head | 3.00 (2.50 to 4.00) | 1.00 (0.50 to 1.00) |"


def test_the_table_of_cuda_has_a_compiled_row_and_leaves_out_who_is_not_there() -> None:
    times = {OURS: [0.2, 0.2], COMPILED: [0.1, 0.1], "torchvision": [0.4, 0.4]}
    assert table({"device": "a GPU", "seconds": {"bf16 for all": times}}).splitlines() == [
        "| a step of SimCLR | ours | lightly | torchvision, as solo-learn |",
        "| --- | --- | --- | --- |",
        "| bf16 for all | 200 ms |  | 2.00 (2.00 to 2.00) |",
        "| bf16 for all, ours compiled | 100 ms |  | 4.00 (4.00 to 4.00) |",
    ]


def test_the_page_says_what_the_file_says() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "steps.json").read_text())
    assert table(found) in (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_what_cuda_does_is_tried_on_a_cpu(
    script: Callable[..., str], few_imagenette: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 224 px, with loader workers; the page stays as it is."""
    monkeypatch.setattr(native, "library", lambda: None)  # seconds of a compiler that CUDA does not need
    places = ("--archives", str(few_imagenette), "--work", str(tmp_path), "--results", str(tmp_path))
    tiny = ("--tiny", *places, "--page", str(tmp_path / "none.md"))
    script(steps, *tiny, "--settings", "float32 for all", "bf16 for all")
    said = script(steps, *tiny, "--settings", "each as it comes")
    found = json.loads((tmp_path / "steps_tiny.json").read_text())
    assert (found["side"], found["batch"], found["workers"]) == (224, TINY.batch, 1)
    assert set(found["seconds"]) == set(SETTINGS)
    assert all({OURS, "torchvision"} <= set(times) for times in found["seconds"].values())
    assert said.rstrip().endswith(table(found))
