"""Mixup and CutMix: images of two classes in one, labelled by their shares.

"mixup: Beyond Empirical Risk Minimization", Zhang et al., ICLR 2018, arXiv:1710.09412; "CutMix", Yun et al., ICCV 2019,
arXiv:1905.04899. As timm's `Mixup` of mode "elem": every image has a share of its own and meets the image that stands
at its place in the reversed micro-batch. Unlike there, draws depend on seed, epoch and image alone, a batch may be odd,
and an image without label adds none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor

from belvedere.views import draws
from belvedere.views.params import send
from belvedere.views.views import Views

# Between the two where both are on, as timm's switch_prob.
SHARE_OF_CUTMIX = 0.5


def mix(views: Views, labels: Tensor, classes: int, mixup: float, cutmix: float) -> tuple[Views, Tensor]:
    """Mix a batch with itself reversed, all slots of an image alike.

    Args:
        labels: (B,) class ids, -1 for none.
        mixup, cutmix: alpha of the Beta law of the shares, 0 = off; one of them is on.

    Returns:
        The views, and (B, classes) shares of the labels on the labels' device; rows sum to 1 where both images have
        a label.
    """
    record = views.params
    drawn = torch.from_numpy(draws.uniform(record.seed, record.epoch, record.index, "mixing", (4,)))
    switch, share, *place = drawn.unbind(1)
    cut = switch < (SHARE_OF_CUTMIX if mixup and cutmix else float(cutmix > 0))
    own = torch.where(cut, _beta(share, cutmix), _beta(share, mixup))
    # The share that is left after the box was cut off at the border, in the whole pixels of the first slot.
    whole = _own_pixels(own, place, views[views.names[0]].shape[-2:])
    shares = torch.where(cut, whole.double().mean((1, 2)), own)
    pixels = {slot: _mixed(views[slot], own, cut, place) for slot in views.names}
    kept = send(shares[:, None].float(), labels.device)
    targets = F.one_hot(labels.clamp(min=0), classes).float() * (labels >= 0)[:, None]
    return views.replace(pixels=pixels), kept * targets + (1 - kept) * targets.flip(0)


def _beta(uniform: Tensor, alpha: float) -> Tensor:
    """Draws of Beta(alpha, alpha) from uniform ones."""
    if not alpha:
        return torch.ones_like(uniform)
    return torch.from_numpy(betaincinv(alpha, alpha, uniform.numpy()))


def _own_pixels(own: Tensor, place: list[Tensor], size: torch.Size) -> Tensor:
    """(B, h, w) bool: what is left of each image beside a box of the other one of sides sqrt(1 - own) of its own."""
    inside = []
    for centre, side in zip(place, size, strict=True):
        length = ((1 - own).sqrt() * side).long()
        start = (centre * side).long() - length // 2
        along = torch.arange(side)
        inside.append((along >= start[:, None]) & (along < (start + length)[:, None]))
    return ~(inside[0][:, :, None] & inside[1][:, None, :])


def _mixed(pixels: Tensor, own: Tensor, cut: Tensor, place: list[Tensor]) -> Tensor:
    weight = torch.where(cut[:, None, None], _own_pixels(own, place, pixels.shape[-2:]).double(), own[:, None, None])
    weight = send(weight[:, None].to(pixels.dtype), pixels.device)
    return weight * pixels + (1 - weight) * pixels.flip(0)
