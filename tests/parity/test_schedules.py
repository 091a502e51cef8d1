"""Schedules against the official tables (spec objectives 1.5, 2.5)."""

from __future__ import annotations

import pytest
from core_helpers import Load

from belvedere.backbones.build import build_backbone
from belvedere.objectives.dino import Dino, DinoOptions
from belvedere.schedules import Clock, cosine, linear_then_cosine, warmup_cosine


def test_dino(golden: Load) -> None:
    g = golden("dino_schedules")
    h = g.hparams
    per_epoch = h["iters_per_epoch"]
    total = h["epochs"] * per_epoch
    other = h["lr_start_cfg"]
    start_temp, end_temp, warmup_epochs = h["teacher_temp"]
    options = DinoOptions(
        prototypes=2,
        hidden=8,
        momentum=h["momentum"][0],
        warmup_teacher_temp=start_temp,
        teacher_temp=end_temp,
        teacher_temp_warmup=warmup_epochs,
        teacher_temp_by="epoch",
        freeze_last_layer=1.0,
        centering="mean",
        use_bn=False,
        norm_last_layer=True,
    )
    objective = Dino(options, dim=2)
    for step in range(total):
        warmup = h["lr_warmup_epochs"] * per_epoch
        lr = warmup_cosine(step, total, warmup, h["lr_peak"], h["lr_end"])
        assert lr == pytest.approx(g["lr"][step].item(), abs=1e-10)
        lr = warmup_cosine(
            step, total, other["warmup_epochs"] * per_epoch, h["lr_peak"], other["end"], start=other["start"]
        )
        assert lr == pytest.approx(g["lr_start"][step].item(), abs=1e-10)
        assert cosine(step, total, *h["wd"]) == pytest.approx(g["wd"][step].item(), abs=1e-10)
        clock = Clock(step, per_epoch, total)
        assert objective.momentum(clock) == pytest.approx(g["momentum"][step].item(), abs=1e-10)
        temperature = g["teacher_temp"][step // per_epoch].item()
        assert objective.teacher_temp(clock) == pytest.approx(temperature, abs=1e-10)


def test_stochastic_depth(golden: Load) -> None:
    rates = golden("dino_schedules")["drop_path_rates"].tolist()
    backbone = build_backbone(
        "vit_tiny", size=(16, 16), channels=1, patch=8, width=8, depth=len(rates), drop_path=rates[-1], seed=0
    )
    found = [getattr(block.drop_path2, "drop_prob", 0.0) for block in backbone.model.blocks]
    assert found == pytest.approx(rates, abs=1e-10)


def test_simclr(golden: Load) -> None:
    g = golden("simclr_schedules")
    h = g.hparams
    warmup = round(h["warmup_epochs"] * h["num_examples"] // h["batch"])
    peaks = {"lr_linear": h["base"]["linear"] * h["batch"] / 256, "lr_sqrt": h["base"]["sqrt"] * h["batch"] ** 0.5}
    for name, peak in peaks.items():
        found = [linear_then_cosine(step, h["total_steps"], warmup, peak) for step in range(h["total_steps"])]
        assert found == pytest.approx(g[name].tolist(), abs=1e-6)
