"""Losses of the two networks (ViTGAN, arXiv:2107.04589, section 4; spec patch_and_pretext 7).

Non-saturating logistic losses, the penalty R1 (arXiv:1801.04406), and balanced consistency (bCR, arXiv:2002.04724) on
images that are augmented differentiably (DiffAug, arXiv:2006.10738).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Images = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DiscriminatorLoss:
    """One step's loss of the discriminator, `total`, and the parts that a log wants (scalars)."""

    total: Tensor
    adversarial: Tensor
    r1: Tensor
    consistency: Tensor
    real: Tensor
    fake: Tensor


def generator_loss(fake: Tensor) -> Tensor:
    """-log D of generated images, from logits `[B]`."""
    return F.softplus(-fake).mean()


def adversarial_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D of real and -log(1 - D) of generated images, from logits `[B]`."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Half the mean squared length of the logits' gradient by real images, itself differentiable."""
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


def discriminator_loss(
    discriminator: Images,
    real: Tensor,
    fake: Tensor,
    first: Images,
    second: Images,
    *,
    r1: float,
    consistency_real: float,
    consistency_fake: float,
) -> DiscriminatorLoss:
    """The discriminator's loss on real and generated images `[B, C, H, W]`.

    Logits are those of `first(images)`, and consistency holds them to those of `second(images)`. With two draws of one
    augmentation that is ViTGAN's; with the identity first it is bCR as published. R1 is by the images as they came.
    """
    real, fake = real.detach().requires_grad_(r1 > 0), fake.detach()
    on_real, on_fake = discriminator(first(real)), discriminator(first(fake))
    adversarial = adversarial_loss(on_real, on_fake)
    none = adversarial.new_zeros(())
    penalty = r1 * r1_penalty(on_real, real) if r1 > 0 else none
    consistency = none
    if consistency_real > 0:
        consistency = consistency + consistency_real * F.mse_loss(discriminator(second(real.detach())), on_real)
    if consistency_fake > 0:
        consistency = consistency + consistency_fake * F.mse_loss(discriminator(second(fake)), on_fake)
    return DiscriminatorLoss(
        adversarial + penalty + consistency,
        adversarial.detach(),
        penalty.detach(),
        consistency.detach(),
        on_real.detach().mean(),
        on_fake.detach().mean(),
    )
