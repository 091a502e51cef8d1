"""Real processes for tests of what crosses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tiny import FORKS


def _process(rank: int, world: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        torch.save(work(rank, *arguments), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_processes(world: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`work(rank, *arguments)` of a module-level function in `world` gloo processes; its results in rank order."""
    mp.start_processes(
        _process, (world, str(folder), work, arguments), nprocs=world, start_method=FORKS.get_start_method()
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


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
