"""Real processes for tests of what crosses them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from belvedere.distributed import part
from tiny import FORKS, free_port, give_renderer


def _process(
    rank: int, world: int, meeting: str, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}/meet", rank=rank, world_size=world)
    torch.save(work(rank, *arguments), f"{folder}/{rank}.pt")
    part()


def run_processes(world: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`work(rank, *arguments)` of a module-level function in `world` gloo processes; its results in rank order."""
    # A folder of their own to meet in: who finds the file of an earlier meeting may wait there for ever.
    with tempfile.TemporaryDirectory(dir=folder) as meeting:
        mp.start_processes(
            _process,
            (world, meeting, str(folder), work, arguments),
            nprocs=world,
            start_method=FORKS.get_start_method(),
        )
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def _started(rank: int, port: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {**torchrun_environment(rank, port), "BELVEDERE_CACHE": folder}
    torch.set_num_threads(1)
    torch.save(work(*arguments), f"{folder}/{rank}.pt")
    part()


def run_as_torchrun(folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`work(*arguments)` in two processes with torchrun's variables, which it is to join; its results in rank order."""
    port = free_port()
    give_renderer(folder)
    processes = [FORKS.Process(target=_started, args=(rank, port, str(folder), work, arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def torchrun_environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun tells process `rank` of two on one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
