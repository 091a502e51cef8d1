"""`--devices N`: the same command in N processes on this machine, as torchrun would start them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from belvedere.errors import UserError


def is_process() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def spread(arguments: Sequence[str], devices: int, device: str) -> NoReturn:
    """Be the parent of `belvedere ARGUMENTS` in `devices` processes, and exit as they do.

    On a CPU each has its share of the cores, unless OMP_NUM_THREADS says otherwise.

    Raises:
        UserError: when the machine has fewer CUDA devices.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    found = torch.cuda.device_count()
    if device == "cuda" or (device == "auto" and found):
        if devices > found:
            raise UserError(f"--devices {devices}: this machine has {found} CUDA devices")
    else:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    # What goes wrong, the processes say themselves.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="torch.distributed")
    try:
        torchrun(["--standalone", f"--nproc-per-node={devices}", "-m", "belvedere", *arguments])
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        if max(codes) < 0:  # killed, it could not say so itself
            process, first = error.get_first_failure()
            name = signal.Signals(-first.exitcode).name
            print(f"belvedere: process {process} was ended by {name}, and the others with it", file=sys.stderr)
        sys.exit(next((code for code in codes if code > 0), 1))
    sys.exit(0)
