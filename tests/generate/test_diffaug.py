"""DiffAug out of our own view operations: what it does, that it is seeded, and that gradients pass twice."""

from __future__ import annotations

import torch
from torch import Tensor

from belvedere.generate.diffaug import GRAY, DiffAug, colour, cut_out, shift_and_flip
from belvedere.generate.settings import Augment


def images(count: int = 6, side: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def test_shifts_are_of_whole_pixels_and_then_mirrored() -> None:
    x = images(2)
    options = Augment(shift=0.25)
    # The first is moved by most down and right, the second stays; the second is mirrored.
    u = torch.tensor([[0.0, 0.0, 0.0, 0.9], [0.9, 0.0, 0.0, 0.1]])
    y = shift_and_flip(x, options, u)
    torch.testing.assert_close(y[0, :, 4:, 4:], x[0, :, :-4, :-4])
    assert (y[0, :, :4] == GRAY).all()
    assert (y[0, :, :, :4] == GRAY).all()
    torch.testing.assert_close(y[1], x[1].flip(2))


def test_a_square_is_cut_out_where_it_fires() -> None:
    x = images(2)
    y = cut_out(x, Augment(cutout=0.5, cutout_p=0.5), torch.tensor([[0.4, 0.5, 0.5], [0.6, 0.5, 0.5]]))
    hidden = (y[0] == GRAY).all(0)
    rows, columns = hidden.nonzero(as_tuple=True)
    assert hidden.sum() == 64
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 11, 4, 11)
    assert torch.equal(y[1], x[1])


def test_colours_change_only_where_they_fire() -> None:
    x = images(2)
    u = torch.full((2, 6), 0.9)
    u[0, 0] = 0.1
    y = colour(x, 0.5, u)
    torch.testing.assert_close(y[0], (1.4 * x[0]).clamp(0, 1))
    torch.testing.assert_close(y[1], x[1])
    gray = images(channels=1)
    same = colour(gray, 1.0, torch.full((6, 6), 0.5))
    torch.testing.assert_close(same, gray)


def test_draws_depend_on_seed_step_call_and_place() -> None:
    x = images(1).expand(6, -1, -1, -1)
    one = DiffAug(Augment(), 0, 5)
    first, second = one(x), one(x)
    again = DiffAug(Augment(), 0, 5)
    assert torch.equal(first, again(x))
    assert torch.equal(second, again(x))
    for other in (second, DiffAug(Augment(), 0, 6)(x), DiffAug(Augment(), 1, 5)(x)):
        assert not torch.equal(first, other)
    assert len({tuple(row.flatten().tolist()) for row in first}) == 6


def test_gradients_pass_twice() -> None:
    """What R1 needs: the gradient by the image, and its gradient by a network behind the augmentation."""
    weight = torch.ones(3, requires_grad=True)
    x = images().requires_grad_()
    y = (DiffAug(Augment(), 0, 0)(x) * weight[:, None, None]).square()
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert gradient.abs().sum((1, 2, 3)).min() > 0
    (second,) = torch.autograd.grad(gradient.square().sum(), weight)
    assert (second > 0).all()


def test_pixels_beyond_white_stay_there_and_keep_their_gradient() -> None:
    """A discriminator that never sees them cannot call them back."""
    x = (1.5 + 0 * images()).requires_grad_()
    y = colour(x, 1.0, torch.full((6, 6), 0.9))
    assert (y == 1.5).all()
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert (gradient > 0).all()
