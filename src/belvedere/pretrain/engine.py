"""The distributed engine: one device, or the processes that torchrun started."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from belvedere.distributed import has_parted
from belvedere.errors import UserError


@contextmanager
def quiet_engine() -> Iterator[None]:
    """Fabric's advice on precision and loggers is none that a user of this library can follow."""
    log = logging.getLogger("lightning_fabric")
    level = log.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning_fabric")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def _started() -> tuple[int, int]:
    """Processes that torchrun started on this machine and on all, one of each when they have parted."""
    names = ("LOCAL_WORLD_SIZE", "WORLD_SIZE")
    local, world = (1 if has_parted() else int(os.environ.get(name, 1)) for name in names)
    return local, world


def _refuse_restarts_that_fail() -> None:
    """torchrun's own store outlives a restart, and with it the addresses of the processes that died.

    Raises:
        UserError: when torchrun would restart processes, which would wait for those.
    """
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise UserError(
            "torchrun --max-restarts: new processes would look for those that died; set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, with --standalone or --rdzv-backend=c10d"
        )


def meet(device: str) -> None:
    """Join the other processes that torchrun started, where there are any."""
    if _started()[1] > 1:
        with quiet_engine():
            make_fabric(device, "float32")


def work_apart(device: str) -> tuple[int, int, int]:
    """(number of this process, how many, how many on this machine) of those that torchrun started.

    For work in which none needs another: they do not meet, so none waits for one that is slow or dies. Each has its own
    CUDA device.
    """
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    found = os.environ
    return int(found.get("RANK", 0)), int(found.get("WORLD_SIZE", 1)), int(found.get("LOCAL_WORLD_SIZE", 1))


def make_fabric(device: str, precision: str) -> Fabric:
    """The engine: one device, or the processes that torchrun started (gloo on CPU, NCCL on CUDA) until they part.

    Raises:
        UserError: when torchrun was started so that its restarts fail.
    """
    local, world = _started()
    strategy: Any = "auto"
    if world > 1:
        _refuse_restarts_that_fail()
        # Running statistics are joined and centres reduced by hand, so nothing is left to broadcast.
        strategy = DDPStrategy(broadcast_buffers=False, process_group_backend="gloo" if device == "cpu" else None)
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=world // local,
        strategy=strategy,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric
