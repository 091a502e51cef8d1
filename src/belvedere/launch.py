"""`--devices N`: the same command in N processes on this machine, as torchrun would start them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from belvedere.errors import UserError

_DONE = "BELVEDERE_DONE"
"""Folder in which each process that `spread` started leaves a file when its command came to its end."""
_SECONDS_TO_END = "100"
"""What a process has to write checkpoint, model and report after a signal; docs/slurm.sh promises two minutes."""


def is_process() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def note_done() -> None:
    """Tell the parent, where `spread` is it, that this process' command came to its end."""
    if _DONE not in os.environ:
        return
    with suppress(OSError):  # the parent is gone
        (Path(os.environ[_DONE]) / os.environ["LOCAL_RANK"]).touch()


def spread(arguments: Sequence[str], devices: int, device: str) -> NoReturn:
    """Be the parent of `belvedere ARGUMENTS` in `devices` processes, and exit as they do.

    On a CPU each has its share of the cores, unless OMP_NUM_THREADS says otherwise. SIGTERM and Ctrl-C are passed on:
    processes that end as the command does then, such as a run with a checkpoint, are an end like any other.

    Raises:
        UserError: when the machine has fewer CUDA devices.
    """
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
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
    # Else they are killed 30 seconds after the signal, as always by a torch that does not know the variable yet.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SECONDS_TO_END)
    with TemporaryDirectory(prefix="belvedere-") as done:
        os.environ[_DONE] = done
        try:
            torchrun(["--standalone", f"--nproc-per-node={devices}", "-m", "belvedere", *arguments])
        except ChildFailedError as error:
            codes = [failure.exitcode for failure in error.failures.values()]
            if max(codes) < 0:  # killed, it could not say so itself
                process, first = error.get_first_failure()
                name = signal.Signals(-first.exitcode).name
                print(f"belvedere: process {process} was ended by {name}, and the others with it", file=sys.stderr)
            sys.exit(next((code for code in codes if code > 0), 1))
        except SignalException as error:
            # How they ended that the signal was passed on to, torch does not say.
            if len(list(Path(done).iterdir())) < devices:
                print(f"belvedere: ended by {error.sigval.name} before all processes were done", file=sys.stderr)
                sys.exit(128 + error.sigval)
    sys.exit(0)
