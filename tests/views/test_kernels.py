"""The Triton kernels: equal to the reference where they are interpreted on the CPU, and they compile for CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from view_helpers import psnr

from belvedere.views.operations import space
from belvedere.views.params import ViewParams
from belvedere.views.program import OperationProgram, with_program
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot, ViewSettings, build_slots

pytest.importorskip("triton", reason="triton is absent: the kernels for CUDA were NOT tried")
CHILD = Path(__file__).with_name("kernels_child.py")
Case = tuple[Any, ViewParams, dict[str, Any]]
# What is left after rounding, in [0, 1]: float32 throughout, or float16 about the middle gray between the kernels.
CLOSE = {torch.float32: 95.0, torch.float16: 70.0}


def child(*arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, str(CHILD), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def interpreted(place: Path, cases: Sequence[Case]) -> list[tuple[Tensor, ...]]:
    """The groups of pixels of each case."""
    torch.save(list(cases), place / "cases.pt")
    child("render", str(place / "cases.pt"), str(place / "views.pt"), TRITON_INTERPRET="1")
    made: list[tuple[Tensor, ...]] = torch.load(place / "views.pt")
    return made


def check(made: Sequence[Tensor], case: Case, least: float) -> None:
    """Equal to the reference; a pixel within rounding of a threshold may fall on either side of it."""
    images, params, options = case
    channels = images[0].shape[-1]
    constants = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    given = {name: value for name, value in options.items() if name != "dtype"}
    expected = render_views(images, params, **constants, backend="reference", **given)
    together = torch.cat([one.flatten() for one in made]).float()
    wanted = torch.cat([one.flatten() for one in expected.pixels])
    plain = torch.cat(
        [
            (params.solarize[v] > 1)[:, None].expand(-1, channels * size[0] * size[1]).flatten()
            for v, size in enumerate(params.size)
        ]
    )
    assert psnr(together[plain], wanted[plain]) >= least
    assert ((together - wanted).abs() > 2e-2).float().mean() <= 1e-3


def settings(size: tuple[int, int], local: tuple[int, int], interpolation: str) -> ViewSettings:
    return ViewSettings(
        size,
        locals=1,
        local_size=local,
        interpolation=interpolation,
        jitter=(0.8, 0.8, 0.8, 0.5),
        blur_p=(0.5,) * 3,
        solarize_p=(0.3,) * 3,
    )


def record(images: Tensor, laws: ViewSettings | Sequence[Slot], seed: int = 1) -> ViewParams:
    slots = build_slots(laws, images.shape[-1]) if isinstance(laws, ViewSettings) else laws
    return sample_views(slots, range(len(images)), [images.shape[1:3]] * len(images), 0, seed)


def test_every_operation_equals_the_reference(photos: Tensor, tmp_path: Path) -> None:
    drawn = record(photos[:2], settings((18, 35), (7, 6), "bicubic"))
    cases: list[Case] = [(photos[:2], drawn, {"dtype": dtype}) for dtype in CLOSE]
    for made, case in zip(interpreted(tmp_path, cases), cases, strict=True):
        check(made, case, CLOSE[case[2]["dtype"]])
        assert made[0].dtype == case[2]["dtype"]


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_channels_sizes_and_interpolation(channels: int, photos: Tensor, tmp_path: Path) -> None:
    images = torch.cat([photos, photos], -1)[:4, :, :, :channels].contiguous()
    whole = record(images, settings((40, 33), (9, 64), "bilinear"))
    moved = {"top": 7.3, "left": 2.25, "h": 51.9, "w": 60.6}
    fractional = replace(whole, **{name: torch.full(whole.top.shape, value) for name, value in moved.items()})
    cases: list[Case] = [(images, one, {}) for one in (whole, fractional)]
    if channels == 3:
        bright = [operation for operation in space("ssl12", 3) if operation.name == "brightness"]
        shape = (*whole.top.shape, 1)
        programs = with_program(whole, torch.zeros(shape).long(), torch.full(shape, 0.5), torch.ones(shape))
        cases.append((images, programs, {"program": OperationProgram(bright)}))
    for made, case in zip(interpreted(tmp_path, cases), cases, strict=True):
        check(made, case, 95)


@pytest.mark.slow
def test_any_box_of_any_image_whatever_the_batch(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    cases: list[Case] = []
    for seed in range(24):
        source, size = (tuple(int(side) for side in draw.integers(1, 41, 2)) for _ in range(2))
        images = torch.from_numpy(draw.integers(0, 256, (3, *source, 3), dtype=np.uint8))
        slot = Slot("v", size, (0.01, 1.0), blur_p=0.5, jitter=(0.4, 0.4, 0.4, 0.5))
        whole = record(images, [slot], seed)
        order = torch.tensor([2, 0])
        cases += [(images, whole, {}), (images[order], whole.take(order), {})]
    made = interpreted(tmp_path, cases)
    for (whole_views,), (some,), case in zip(made[::2], made[1::2], cases[::2], strict=True):
        check([whole_views], case, 95)
        assert torch.equal(whole_views[[2, 0]], some)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_they_compile_without_a_device(capability: str, tmp_path: Path) -> None:
    told = child("compile", capability, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    rows = [line.split() for line in told]
    assert len(rows) == 18
    assert all(row[2] == "True" for row in rows)
    # Products of float16 run on the tensor cores.
    assert {row[0] for row in rows if row[1] == "fp16" and row[3] == "True"} == {"_resize", "_blur"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_refused_where_they_cannot_run(photos: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='backend "triton" renders on CUDA, the images are on cpu'):
        render_views(
            photos, record(photos, [Slot("v", (8, 8), (0.2, 1.0))]), mean=[0.0] * 3, std=[1.0] * 3, backend="triton"
        )
    monkeypatch.delitem(sys.modules, "belvedere.views.kernels")
    monkeypatch.delattr("belvedere.views.kernels")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match='backend "triton" needs triton, which comes with torch'):
        render_views(
            photos, record(photos, [Slot("v", (8, 8), (0.2, 1.0))]), mean=[0.0] * 3, std=[1.0] * 3, backend="triton"
        )
