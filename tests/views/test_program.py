"""Programs in the record: which operations each image goes through, in what order, and what flows back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from belvedere.views.operations import space
from belvedere.views.params import ViewParams
from belvedere.views.program import NOTHING, OP, OperationProgram, clean, draw, with_program
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot

OPERATIONS = space("ssl12", 3)
NAMES = [operation.name for operation in OPERATIONS]
CONSTANTS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture
def programmed(drawn: ViewParams) -> ViewParams:
    """Programs of three stages, some of them empty, all operations among them."""
    op = torch.arange(4 * 8 * 3).view(4, 8, 3) % (len(OPERATIONS) + 1) - 1
    numbers = draw(drawn, 3)
    return with_program(drawn, op, 0.1 + 0.8 * numbers.amount, numbers.sign)


def one_by_one(pixels: Tensor, params: ViewParams, slot: int) -> Tensor:
    """What the program must do: image by image, stage by stage."""
    out = []
    for n in range(len(pixels)):
        x = pixels[n : n + 1]
        for stage in range(params.extras[OP].shape[2]):
            at = (slot, slice(n, n + 1), stage)
            op, magnitude, sign = (params.extras[name][at] for name in ("op", "magnitude", "sign"))
            if op != NOTHING:
                x = OPERATIONS[int(op)].apply(x, magnitude, sign)
        out.append(x)
    return torch.cat(out)


def test_every_image_goes_through_its_own_operations_in_order(programmed: ViewParams) -> None:
    pixels = torch.rand(8, 3, 24, 20, generator=torch.Generator().manual_seed(0))
    program = OperationProgram(OPERATIONS)
    for slot in range(4):
        assert (program(pixels, programmed, slot) - one_by_one(pixels, programmed, slot)).abs().max() <= 2e-6
    backwards = replace(programmed, extras={name: extra.flip(2) for name, extra in programmed.extras.items()})
    assert (program(pixels, backwards, 0) - program(pixels, programmed, 0)).abs().max() > 0.05


def test_nothing_is_crop_and_flip_to_the_last_bit(photos: Tensor, drawn: ViewParams) -> None:
    numbers = draw(drawn, 2)
    nothing = with_program(drawn, torch.full((4, 8, 2), NOTHING), numbers.amount, numbers.sign)
    shown = render_views(photos, nothing, **CONSTANTS, program=OperationProgram(OPERATIONS))
    plain = render_views(photos, replace(nothing, extras={}), **CONSTANTS)
    for name in drawn.slots:
        # A program's pixels are taken to [0, 1] and back.
        assert (shown[name] - plain[name]).abs().max() <= 1e-6
        assert not torch.equal(plain[name], render_views(photos, drawn, **CONSTANTS)[name])


def test_gradients_reach_the_magnitudes_of_every_stage_and_the_pixels(photos: Tensor, drawn: ViewParams) -> None:
    rows = [NAMES.index("brightness"), NAMES.index("contrast")]
    op = torch.tensor(rows).expand(4, 8, 2)
    magnitude = torch.full((4, 8, 2), 0.3, requires_grad=True)
    params = with_program(drawn, op, magnitude, draw(drawn, 2).sign)
    views = render_views(photos, params, **CONSTANTS, program=OperationProgram(OPERATIONS))
    sum(views[name].square().mean() for name in views.names).backward()
    assert magnitude.grad.isfinite().all()
    assert (magnitude.grad.abs().sum((0, 1)) > 0).all()

    pixels = torch.rand(8, 3, 24, 20).requires_grad_()
    OperationProgram(OPERATIONS)(pixels, params, 0).sum().backward()
    assert (pixels.grad.abs().sum((1, 2, 3)) > 0).all()


def test_a_program_travels_with_its_view(photos: Tensor, drawn: ViewParams, programmed: ViewParams) -> None:
    program = OperationProgram(OPERATIONS)
    choice = torch.tensor([[0, 1] * 4])
    chosen = programmed.gather(choice, ["global_a"])
    found = render_views(photos, chosen, **CONSTANTS, program=program)["global_a"]
    both = render_views(photos, programmed, **CONSTANTS, program=program)
    for n in range(8):
        expected = both[drawn.slots[choice[0, n]]][n]
        assert (found[n] - expected).abs().max() <= 2e-6


def test_draws_are_the_view_s_own() -> None:
    slots = [Slot("global_a", (8, 8), (0.4, 1.0)), Slot("global_b", (8, 8), (0.4, 1.0))]
    count = 5000
    params = sample_views(slots, range(count), [(32, 32)] * count, epoch=1, seed=2)
    some = draw(params, 2)
    part = draw(sample_views(slots[1:], [7, 3], [(32, 32)] * 2, epoch=1, seed=2), 2)
    for name in ("which", "amount", "sign", "further"):
        numbers = getattr(some, name)
        assert torch.equal(getattr(part, name), numbers[1:][:, [7, 3]])
        assert not torch.equal(numbers[0], numbers[1])
        assert not torch.equal(numbers[..., 0], numbers[..., 1])
    columns = torch.cat([some.which, some.amount, some.sign, some.further], -1).flatten(0, 1).T
    assert (torch.corrcoef(columns.double()) - torch.eye(8)).abs().max() < 0.05
    for uniform in (some.which, some.amount, some.further):
        assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
        assert uniform.max() < 1
    assert stats.kstest(some.noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(some.sign.mean()) < 4 / np.sqrt(4 * count)
    later = sample_views(slots, range(count), [(32, 32)] * count, epoch=2, seed=2)
    assert not torch.equal(draw(later, 2).which, some.which)


def test_clean_shows_the_whole_image(photos: Tensor, programmed: ViewParams) -> None:
    anchor = clean(programmed, "global_b")
    assert anchor.slots == ("global_b",)
    assert (anchor.box_norm() == torch.tensor([0.0, 0.0, 1.0, 1.0])).all()
    shown = render_views(photos, anchor, **CONSTANTS, program=OperationProgram(OPERATIONS))["global_b"]
    assert shown.shape == (8, 3, 48, 40)
    off = replace(anchor, extras={})
    assert (shown - render_views(photos, off, **CONSTANTS)["global_b"]).abs().max() <= 1e-6
