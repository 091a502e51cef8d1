"""A batch that does not fit ends the run in one line with a batch that does; it is never changed by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import words, write_photos

from belvedere import api
from belvedere.errors import UserError
from belvedere.pretrain.loop import Loop
from belvedere.pretrain.memory import enough_for, step_or_refuse
from belvedere.pretrain.trainer import Trainer
from tiny import MACHINE, NETWORK, tiles, tiny_canvases, tiny_trainer


def test_the_largest_half_that_fits_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, feed = tiny_trainer("simclr", tiny_canvases(24), train__batch=24)
    tried: list[int] = []
    whole = Trainer.step

    def scarce(self: Trainer, step: int, micro_batches: Any, detail: bool = False) -> Any:
        tried.append(len(micro_batches[0][0]))
        if tried[-1] > 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(self, step, micro_batches, detail)

    monkeypatch.setattr(Trainer, "step", scarce)
    batches = next(feed.stream(0, 1))
    with pytest.raises(UserError, match=r"train\.batch=24: 24 images at a time do not fit") as refusal:
        step_or_refuse(trainer, feed, 0, batches)
    assert tried == [24, 12, 6]
    assert "6 do, measured: give train.batch=6, or train.accumulate=4" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, feed = tiny_trainer("simclr")

    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        step_or_refuse(trainer, feed, 0, next(feed.stream(0, 1)))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_every_kind_of_it_is_told_in_a_line(error: Exception) -> None:
    with pytest.raises(UserError, match=r"^the look does not fit into memory \(.+\); wait$") as refusal, fitting():
        raise error
    assert "\n" not in str(refusal.value)
    with pytest.raises(RuntimeError, match="shapes do not match"), fitting():
        raise RuntimeError("shapes do not match")


def fitting() -> AbstractContextManager[None]:
    return enough_for("the look", "wait")


@pytest.mark.parametrize("place", ["look", "report"])
def test_a_look_or_a_report_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    def scarce(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    owner, name = (Loop, "_look") if place == "look" else (api, "draw_pictures")
    monkeypatch.setattr(owner, name, scarce)
    run, settings = tmp_path / "run", {**NETWORK, **MACHINE, "train.batch": 8, "train.steps": 1}
    with pytest.raises(UserError, match=rf"run: the {place}.* does not fit into memory \(.* --resume"):
        api.pretrain(tiles(24), out=run, settings=settings)
    assert (run / "checkpoint.pt").exists() == (place == "report")


@pytest.mark.slow
def test_a_process_that_may_not_have_more_memory(tmp_path: Path) -> None:
    """Real memory, really short: little above what the imports take, for 512 images of 256 tokens."""
    photos = write_photos(tmp_path / "photos", 512)
    settings = {"views__size": 64, "backbone__patch": 4, "train__batch": 512}
    arguments = [*words(**settings, train__steps=2, monitor__probe=16, monitor__knn=0, views__locals=0)]
    code = (
        "import resource, sys; import belvedere.api; from belvedere import cli\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))\n"
        "cli.main()"
    )
    environment = {**os.environ, "BELVEDERE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, "pretrain", str(photos), "--recipe", "dino", "--out", str(tmp_path / "run")]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("belvedere: train.batch=512: 512 images at a time do not fit into the memory of cpu (")
    assert "measured: give train.batch=" in last
