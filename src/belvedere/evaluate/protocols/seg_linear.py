"""Segmentation by one linear layer on the patch tokens of the frozen network, the usual dense probe; needs masks.

Spec evaluation 2.9 (a): the network is frozen, its patch tokens are standardised, one linear layer (a convolution of
1 x 1) gives the logits of a patch, and these are interpolated to the mask's size. The layer learns the shares of the
classes in each patch (cross-entropy with soft targets, every labelled pixel counts once), which needs no logits at
pixel size and measured 85 times faster; it is scored at the masks' size all the same. The problem is convex and solved
by L-BFGS, so there is no learning rate: the one choice is the weight decay, on a tenth of the training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import minimize
from torch import Tensor

from belvedere.evaluate.protocols._segmentation import Classifier, Patches, Segmenter

NEVER = -1e6
"""Logit of what is never answered; finite, because logits are interpolated."""


class Options(BaseModel):
    """Weight decays to choose from, most iterations of the solver, and how many training patches to learn from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    decays: tuple[Annotated[float, Field(gt=0)], ...] = Field((1e-2, 1e-3, 1e-4, 1e-5, 1e-6), min_length=1)
    iterations: int = Field(50, ge=1)
    patches: int = Field(2**18, ge=1)


class SegLinear(Segmenter):
    """mIoU, mAcc, aAcc and the mean accuracy of an image in percent, and the IoU of every class."""

    Options = Options
    name = "seg_linear"
    choosing = "decay"

    def settings_for(self, patches: int) -> Sequence[float]:
        """All weight decays, the strongest first."""
        return sorted(self.options.decays, reverse=True)

    def fit(self, patches: Patches, settings: Sequence[float], device: torch.device | str) -> Classifier:
        """One layer a weight decay; each starts where the stronger one ended."""
        x, shares = patches.features.to(device).float(), patches.shares.to(device)
        mean, std = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
        x = (x - mean) / std
        spectrum = covariance(x)
        present = shares.sum(0) > 0
        layer = x.new_zeros(x.shape[1] + 1, int(present.sum()))
        layers = []
        for decay in settings:
            layer = fit_layer(x, shares[:, present], spectrum, decay, layer, self.options.iterations)
            layers.append(layer)
        # A class without a pixel in training is never answered.
        weight = x.new_zeros(len(layers), x.shape[1], len(present))
        bias = x.new_full((len(layers), 1, len(present)), NEVER)
        weight[:, :, present] = torch.stack([one[:-1] for one in layers])
        bias[:, :, present] = torch.stack([one[-1:] for one in layers])

        def classify(found: Tensor) -> Tensor:
            return (found - mean) / std @ weight + bias

        return classify

    def told(self) -> dict[str, Any]:
        """The options."""
        return {"decays": list(self.options.decays), "solver": "L-BFGS", "most_iterations": self.options.iterations}


def covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (D,), not below 0, and eigenvectors (D, D) of the covariance of centred features (P, D)."""
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    return values.clamp(min=0), vectors


def fit_layer(
    x: Tensor, shares: Tensor, spectrum: tuple[Tensor, Tensor], decay: float, start: Tensor, iterations: int
) -> Tensor:
    """Weights of multinomial regression on soft targets: the least cross-entropy + decay / 2 |W|^2.

    Tokens are strongly correlated, so the solver works where their covariance, with the decay, is the identity. That
    takes a tenth of the iterations and less (CamVid: 30 come closer than 400); the minimum is the same.

    Args:
        x: (P, D) standardised features.
        shares: (P, K) targets; a row counts as much as it sums to.
        spectrum: of x, see `covariance`.
        start: (D + 1, K) where to begin; the last row is the bias, which is not decayed.

    Returns:
        (D + 1, K).
    """
    mass, total = shares.sum(1, keepdim=True), float(shares.sum())
    values, vectors = spectrum
    whiten = vectors * (values + decay).rsqrt()
    unwhiten = vectors * (values + decay).sqrt()

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        inner = torch.from_numpy(flat).to(start).reshape(start.shape)
        weight = whiten @ inner[:-1]
        log_p = (x @ weight + inner[-1]).log_softmax(1)
        slope = (log_p.exp() * mass - shares) / total
        gradient = torch.cat([whiten.T @ (x.T @ slope + decay * weight), slope.sum(0, keepdim=True)])
        value = -float((shares * log_p).sum()) / total + decay / 2 * float(weight.square().sum())
        return value, gradient.flatten().cpu().double().numpy()

    begin = torch.cat([unwhiten.T @ start[:-1], start[-1:]]).flatten().cpu().double().numpy()
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    inner = torch.from_numpy(found.x).to(start).reshape(start.shape)
    return torch.cat([whiten @ inner[:-1], inner[-1:]])
