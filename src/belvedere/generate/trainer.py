"""One step of two networks against each other (ViTGAN, arXiv:2107.04589, section 4)."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from belvedere.generate.attention import REFERENCE, AttentionForm, Values
from belvedere.generate.diffaug import DiffAug
from belvedere.generate.discriminator import Discriminator
from belvedere.generate.generator import Generator
from belvedere.generate.losses import discriminator_loss, generator_loss
from belvedere.generate.settings import Settings
from belvedere.generate.spectral import settle
from belvedere.measure.encoder import preprocess
from belvedere.objectives._ema import ema_update
from belvedere.views.draws import uniform

BETAS = (0.0, 0.99)
RAMP = 0.05
"""The averaged generator's memory is at most this share of the images seen so far."""


def latents(seed: int, step: int, count: int, dim: int, purpose: str, first: int = 0) -> Tensor:
    """Standard normal noise `[count, dim]`, the same for ever; row i is that of number `first + i`."""
    drawn = uniform(seed, step, np.arange(first, first + count), purpose, (dim,))
    normal: Tensor = torch.special.ndtri(torch.from_numpy(drawn).clamp(1e-12, 1 - 1e-12))
    return normal.float()


def form_of(settings: Settings) -> AttentionForm:
    """How tokens look at each other; the published form is published as a whole."""
    asked = settings.attention
    if asked.form == "published":
        return REFERENCE
    return AttentionForm(asked.form, asked.sign, asked.tied, asked.power, cast(Values, asked.values))


def make_generator(settings: Settings) -> Generator:
    """The generator of settled settings, drawn from torch's generator."""
    images, own = settings.images, settings.generator
    return Generator(
        size=int(images.size),
        channels=int(images.channels),
        dim=int(own.dim),
        depth=own.depth,
        heads=int(own.heads),
        painter=int(own.painter),
        form=form_of(settings),
        grid=own.grid,
    )


def make_discriminator(settings: Settings) -> Discriminator:
    """The discriminator of settled settings, drawn from torch's generator."""
    images, own = settings.images, settings.discriminator
    return Discriminator(
        size=int(images.size),
        channels=int(images.channels),
        dim=int(own.dim),
        depth=own.depth,
        heads=int(own.heads),
        form=form_of(settings),
        patch=int(own.patch),
        overlap=int(own.overlap),
    )


class Trainer:
    """Both networks, their optimisers, and the average of the generator, which is what the run is for."""

    def __init__(self, settings: Settings, device: str) -> None:
        """Draw the networks by the run's seed."""
        self.settings, self.device = settings, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.train.seed)
            self.generator = make_generator(settings).to(self.device)
            self.discriminator = make_discriminator(settings).to(self.device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        train = settings.train
        self.optimizers = {
            "generator": torch.optim.Adam(self.generator.parameters(), lr=train.lr, betas=BETAS),
            "discriminator": torch.optim.Adam(
                self.discriminator.parameters(), lr=float(train.lr_discriminator), betas=BETAS
            ),
        }

    def pixels(self, images: Tensor | list[Tensor]) -> Tensor:
        """Canvases as squares `[N, C, size, size]`, black 0 and white 1, on the run's device."""
        return squares(images, int(self.settings.images.size), int(self.settings.images.channels)).to(self.device)

    def step(self, step: int, images: Tensor | list[Tensor]) -> dict[str, float]:
        """One step of the discriminator, then one of the generator; what a log wants to know.

        Where a loss or its gradient is not finite, that network does not move.
        """
        settings, real = self.settings, self.pixels(images)
        for name, rate in (("generator", settings.train.lr), ("discriminator", settings.train.lr_discriminator)):
            for group in self.optimizers[name].param_groups:
                group["lr"] = float(rate) * min(1.0, (step + 1) / max(1, int(settings.train.warmup)))
        augment = DiffAug(settings.augment, settings.train.seed, step)
        first = augment if settings.loss.augment == "both" else _as_it_is
        with torch.no_grad():
            fake = self.generator(self._noise(step, len(real), "discriminator"))
        loss = discriminator_loss(
            self.discriminator,
            real,
            fake,
            first,
            augment,
            r1=settings.loss.r1,
            consistency_real=settings.loss.consistency_real,
            consistency_fake=settings.loss.consistency_fake,
        )
        moved = self._move("discriminator", loss.total)
        self.discriminator.requires_grad_(False)
        generated = generator_loss(self.discriminator(first(self.generator(self._noise(step, len(real), "generator")))))
        moved = self._move("generator", generated) and moved
        self.discriminator.requires_grad_(True)
        seen = (step + 1) * len(real)
        ema_update(self.generator, self.average, math.pow(0.5, len(real) / min(settings.train.half_life, RAMP * seen)))
        told = {
            "loss": loss.adversarial,
            "loss_generator": generated.detach(),
            "r1": loss.r1,
            "consistency": loss.consistency,
            "real": loss.real,
            "fake": loss.fake,
        }
        return {name: float(value) for name, value in told.items()} | {"moved": float(moved)}

    def _noise(self, step: int, count: int, whose: str) -> Tensor:
        return latents(self.settings.train.seed, step, count, self.generator.dim, f"noise {whose}").to(self.device)

    def _move(self, whose: str, loss: Tensor) -> bool:
        optimizer = self.optimizers[whose]
        optimizer.zero_grad(set_to_none=True)
        if not torch.isfinite(loss):
            return False
        torch.autograd.backward(loss)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            return False
        optimizer.step()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        networks = {name: getattr(self, name).state_dict() for name in _NETWORKS}
        return networks | {f"adam {name}": optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state.

        Raises:
            RuntimeError: when it is one of other networks.
        """
        for name in _NETWORKS:
            getattr(self, name).load_state_dict(state[name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[f"adam {name}"])


_NETWORKS = ("generator", "discriminator", "average")


def _as_it_is(x: Tensor) -> Tensor:
    return x


def squares(images: Tensor | list[Tensor], size: int, channels: int) -> Tensor:
    """Canvases as `[N, C, size, size]`, black 0 and white 1."""
    return preprocess(images, (size, size), (0.0,) * channels, (1.0,) * channels)


@torch.no_grad()
def paint(generator: Generator, noise: Tensor, batch: int = 64) -> Tensor:
    """Images `[N, C, size, size]` in [0, 1], on the CPU, from noise `[N, dim]`."""
    settle(generator)
    generator.eval()
    device = next(generator.parameters()).device
    return torch.cat([generator(part.to(device)).clamp(0, 1).cpu() for part in torch.split(noise, batch)])
