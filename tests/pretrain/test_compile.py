"""`train.compile`: the same training."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tiny import tiny_trainer, train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "more"), [("simclr", {"tasks": ["rotation"]}), ("ibot", {"views__policy": "learned"})]
)
def test_compiled_training_has_the_same_losses(
    objective: str, more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the backend that compiles no kernels: what it captures is what runs, and a minute less."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = (
        [report.loss for report in train(*tiny_trainer(objective, train__steps=4, train__compile=on, **more), 0, 4)]
        for on in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 100
