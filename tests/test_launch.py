"""What the parent of several processes makes of a signal."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.api import SignalException

from belvedere import launch


@pytest.mark.parametrize(("done", "code"), [(2, 0), (1, 128 + signal.SIGTERM)])
def test_a_signal_is_an_end_only_where_all_processes_were_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: int, code: int
) -> None:
    """One that was killed, or had nothing to save yet, did not do what it was told."""
    environment = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "7"}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(logging.getLogger("torch.distributed"), "setLevel", lambda level: None)

    def run(_: list[str]) -> NoReturn:
        for rank in range(done):
            environment["LOCAL_RANK"] = str(rank)
            launch.note_done()
        raise SignalException("got a signal", signal.SIGTERM)

    monkeypatch.setattr(torch.distributed.run, "main", run)
    with pytest.raises(SystemExit) as exit_:
        launch.spread(["pretrain"], 2, "cpu")
    assert exit_.value.code == code
    told = "" if not code else "belvedere: ended by SIGTERM before all processes were done\n"
    assert capsys.readouterr().err == told
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "7"


def test_processes_have_longer_than_torch_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint, the model and the report may take more than its 30 seconds."""
    environment = {name: x for name, x in os.environ.items() if name != "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(logging.getLogger("torch.distributed"), "setLevel", lambda level: None)
    found = []
    monkeypatch.setattr(
        torch.distributed.run, "main", lambda _: found.append(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    )
    with pytest.raises(SystemExit) as exit_:
        launch.spread(["pretrain"], 2, "cpu")
    assert exit_.value.code == 0
    script = Path(__file__).parents[1] / "docs" / "slurm.sh"
    assert f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={found[0]}\n" in script.read_text()
    assert int(found[0]) > 30
