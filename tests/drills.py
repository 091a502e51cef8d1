"""Kills at named places: a process of its own, whose chosen function ends it as power failure would."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tiny import FORKS, Command, give_renderer, run_command


@dataclass(frozen=True)
class Drill:
    """Where a process is killed.

    Attributes:
        function: "module:attribute", in the module that calls it.
        call: the how-manieth call it is, of those with `word` in their arguments.
        moment: before the call, after it, or when half of the file that it writes is there.
    """

    function: str
    call: int = 1
    moment: Literal["before", "after", "half"] = "before"
    word: str = ""


# In the order of a run.
PRETRAINING = {
    "listing images": Drill("belvedere.images.files:suffix", 5),
    "decoding an image": Drill("belvedere.images.making:decode_canvas", 7),
    "writing the cache's index": Drill("belvedere.images.canvases:write_index"),
    "cache whole but not in its place": Drill("belvedere.images.canvases:write_index", moment="after"),
    "cache in its place": Drill("belvedere.images.canvases:_build", moment="after"),
    "skipped files written": Drill("belvedere.pretrain.start:picture"),
    "views drawn": Drill("belvedere.pretrain.start:picture", moment="after"),
    "half of the configuration": Drill("belvedere.atomic:_fill", 1, "half", "config.yaml"),
    "first look": Drill("belvedere.pretrain.loop:Loop._look"),
    "a step": Drill("belvedere.pretrain.loop:Trainer.step", 9, "after"),
    "half a line of the log": Drill("belvedere.pretrain.folder:RunFolder.log", 14, "half"),
    "half of a checkpoint": Drill("torch:save", 3, "half"),
    "checkpoint whole but not in its place": Drill("os:replace", 3, "before", "checkpoint.pt"),
    "checkpoint in its place": Drill("os:replace", 3, "after", "checkpoint.pt"),
    "last checkpoint": Drill("belvedere.api:_finish"),
    "model written": Drill("belvedere.api:save_backbone", 1, "after"),
    "pictures drawn": Drill("belvedere.api:draw_pictures", 1, "after"),
    "half of the report": Drill("belvedere.atomic:_fill", 1, "half", "report.html"),
}
EVALUATION = {
    "features": Drill("belvedere.evaluate.contract:extract", 2, "after"),
    "half of the results": Drill("belvedere.atomic:_fill", 1, "half", "evaluation.json"),
    "half of the items": Drill("belvedere.evaluate.records:_save", 1, "half"),
    "items without the results": Drill("belvedere.evaluate.records:_save", 1, "after"),
}


class Drilled(Command):
    """`belvedere ARGUMENTS` in a process of its own that a drill kills."""

    def __init__(self, drill: Drill, arguments: list[str], output: Path, cache: Path) -> None:
        self._output = output
        give_renderer(cache)
        self.process = FORKS.Process(target=_run_drilled, args=(drill, arguments, str(output), str(cache)))
        self.process.start()


def _run_drilled(drill: Drill, arguments: list[str], output: str, cache: str) -> None:
    module, _, attribute = drill.function.partition(":")
    *owners, name = attribute.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, _killing(getattr(owner, name), drill))
    run_command(arguments, output, cache)


def _killing(function: Callable[..., Any], drill: Drill) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += drill.word in repr(args)
        dies = drill.word in repr(args) and calls == drill.call
        if dies and drill.moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        returned = function(*args, **kwargs)
        if dies and drill.moment == "half":
            _halve(next(path for path in map(_file_of, args) if path is not None))
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return returned

    return killing


def _file_of(argument: Any) -> Path | None:
    """The file that a writing function was given: its path, one that is open, or a run folder's log."""
    if hasattr(argument, "metrics"):
        return Path(argument.metrics)
    if hasattr(argument, "flush"):
        argument.flush()
    name = getattr(argument, "name", None) if hasattr(argument, "flush") else argument
    return Path(name) if isinstance(name, str | Path) else None


def _halve(path: Path) -> None:
    """Cut the file in its middle; a log in the middle of its last line."""
    content = path.read_bytes()
    keep = len(content) - len(content.splitlines()[-1]) // 2 if path.suffix == ".jsonl" else len(content) // 2
    os.truncate(path, keep)
