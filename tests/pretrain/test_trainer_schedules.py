"""What the optimiser is told at each step: the papers' tables, group by group."""

from __future__ import annotations

import numpy as np
import pytest

from tiny import tiny_trainer

STEPS, WARMUP, PEAK = 12, 4, 0.5


def dino_table(base: float, final: float, warmup: int) -> np.ndarray:
    """`cosine_scheduler` of the official DINO code, with one step an epoch."""
    rest = np.arange(STEPS - warmup)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * rest / len(rest)))
    return np.concatenate([np.linspace(0, base, warmup), cosine])


def simclr_table(peak: float) -> np.ndarray:
    """Linear to the peak, which is reached right after the warm-up, and tf.train.cosine_decay from there to 0."""
    step = np.arange(STEPS)
    cosine = peak * 0.5 * (1 + np.cos(np.pi * (step - WARMUP) / (STEPS - WARMUP)))
    return np.where(step < WARMUP, peak * step / WARMUP, cosine)


def relvit_table(peak: float, end: float) -> np.ndarray:
    """Linear from 0, then a quarter of a cosine that counts from the first step."""
    step = np.arange(STEPS)
    share = 1 - np.cos(np.pi / 2 * step / STEPS)
    return np.where(step < WARMUP, peak * step / WARMUP, share * end + (1 - share) * peak)


@pytest.mark.parametrize(
    ("objective", "lr", "decays", "decay"),
    [
        ("supervised", relvit_table(PEAK, 1.25e-6), np.full(STEPS, 0.1), "matrices"),
        ("dino", dino_table(PEAK, 1e-6, WARMUP), dino_table(0.04, 0.4, 0), "matrices"),
        ("simclr", simclr_table(PEAK), np.full(STEPS, 0.1), "all"),
    ],
)
def test_every_group_follows_the_papers_tables(
    objective: str, lr: np.ndarray, decays: np.ndarray, decay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, feed = tiny_trainer(objective, train__steps=STEPS, train__warmup=WARMUP, train__lr=PEAK)
    monkeypatch.setattr(type(trainer.parts.objective), "fixed_lr", ())
    seen: list[list[tuple[float, float, bool]]] = []
    inner = trainer.optimizer.optimizer

    def note(*_: object) -> None:
        seen.append([(group["lr"], group["weight_decay"], group["decayed"]) for group in inner.param_groups])

    inner.register_step_pre_hook(note)
    for step, micro_batches in enumerate(feed.stream(0, STEPS)):
        report = trainer.step(step, micro_batches)
        assert (report.lr, report.weight_decay) == pytest.approx((lr[step], decays[step]), abs=1e-10)
    assert len(seen) == STEPS
    assert len(seen[0]) == (2 if decay == "matrices" else 1)
    for step, groups in enumerate(seen):
        for group_lr, group_decay, decayed in groups:
            assert group_lr == pytest.approx(lr[step], abs=1e-10)
            assert group_decay == pytest.approx(decays[step] if decayed else 0.0, abs=1e-10)


def test_constant_rates_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """SimSiam's predictor trains at the peak rate throughout."""
    from belvedere.objectives.simclr import SimClr

    monkeypatch.setattr(SimClr, "fixed_lr", ("head.",))
    trainer, feed = tiny_trainer("simclr", train__steps=STEPS, train__warmup=WARMUP, train__lr=PEAK)
    for step, micro_batches in enumerate(feed.stream(0, 6)):
        report = trainer.step(step, micro_batches)
        rates = {group["fixed_lr"]: group["lr"] for group in trainer.optimizer.optimizer.param_groups}
        assert rates == {True: PEAK, False: report.lr}
    head = {id(p) for p in trainer.parts.student.head.parameters() if p.requires_grad}
    fixed = [id(p) for group in trainer.optimizer.optimizer.param_groups if group["fixed_lr"] for p in group["params"]]
    assert set(fixed) == head


def test_simsiams_cosine_has_one_stair_an_epoch() -> None:
    trainer, feed = tiny_trainer(
        "simsiam", train__steps=STEPS, train__warmup=0, train__schedule="simsiam", train__lr=PEAK
    )
    epoch, epochs = np.arange(STEPS) // feed.steps_per_epoch, STEPS / feed.steps_per_epoch
    expected = PEAK * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
    assert 1 < len(set(expected)) < STEPS
    found = [trainer.step(step, micro_batches).lr for step, micro_batches in enumerate(feed.stream(0, STEPS))]
    assert found == pytest.approx(expected, abs=1e-10)


def test_stochastic_depth_is_the_students_only() -> None:
    trainer, _ = tiny_trainer("dino", backbone__drop_path=0.3)
    student, teacher = trainer.parts.student, trainer.parts.teacher
    assert teacher is not None
    assert student.backbone.model.blocks[-1].drop_path2.drop_prob == pytest.approx(0.3)
    assert not hasattr(teacher.backbone.model.blocks[-1].drop_path2, "drop_prob")
