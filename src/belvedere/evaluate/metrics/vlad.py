"""From the patch tokens of a page to one vector, as writer retrieval by a self-supervised ViT makes it.

Raven, Matei and Fink, ICDAR 2024; spec patch_and_pretext 8. Patches on ink are kept; every token goes to its nearest
centre, and what it differs from that is summed centre by centre (VLAD; Jegou et al., CVPR 2010), or pooled so that
every token weighs alike (generalised max pooling; Murray and Perronnin, CVPR 2014); signed square root, length 1. Then
PCA whitening, and at last the mean of vectors that are among each other's nearest (reciprocal k-NN re-ranking).
"""

from __future__ import annotations

from typing import Literal

import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F

from belvedere.measure.knn import top_neighbours

Ink = Literal["dark", "light"]


def foreground(levels: Tensor, grid: tuple[int, int], least: int, threshold: float, ink: Ink) -> Tensor:
    """(n, h * w) bool: cells of a grid with at least so many pixels of ink, row by row.

    Args:
        levels: (n, C, H, W) pixels in 0..255; their mean over the channels is looked at.
        grid: (h, w), which divides H and W.
        least: pixels of ink that a cell has to have; 0 keeps all.
        threshold: dark ink lies below it, light ink at it or above.
    """
    gray = levels.mean(1, keepdim=True)
    inked = gray < threshold if ink == "dark" else gray >= threshold
    cell = gray.shape[2] // grid[0], gray.shape[3] // grid[1]
    return F.avg_pool2d(inked.float(), cell, divisor_override=1).flatten(1) >= least


def vlad(tokens: Tensor, centers: Tensor, gamma: float | None = None) -> Tensor:
    """(K * D,) the tokens (T, D) of one page against K centres (K, D), of length 1.

    Args:
        gamma: ridge of generalised max pooling: of each centre the w that makes the products of w and its residuals as
            near to 1 as `gamma` |w|^2 lets them; None sums the residuals.
    """
    nearest = torch.cdist(tokens, centers).argmin(1)
    residuals = tokens - centers[nearest]
    sums = F.one_hot(nearest, len(centers)).to(tokens.dtype).T @ residuals
    if gamma is not None:
        ridge = gamma * torch.eye(tokens.shape[1], dtype=tokens.dtype, device=tokens.device)
        for k in sorted(set(nearest.tolist())):
            own = residuals[nearest == k]
            sums[k] = torch.linalg.solve(own.T @ own + ridge, sums[k])
    return F.normalize((sums.sign() * sums.abs().sqrt()).flatten(), dim=0)


def whitened(fitted: Tensor, vectors: Tensor, dims: int, seed: int) -> Tensor:
    """(M, dims) the first principal components of `vectors` (M, D), each of variance 1 on `fitted` (P, D); length 1.

    Args:
        dims: fewer than P, and at most D.
    """
    pca = PCA(dims, whiten=True, random_state=seed).fit(fitted.numpy())
    return F.normalize(torch.from_numpy(pca.transform(vectors.numpy())), dim=1)


def reranked(vectors: Tensor, k: int, reciprocal: bool = True) -> Tensor:
    """(M, D) each vector's mean with those of its k nearest that also have it among theirs, of length 1.

    Args:
        vectors: (M, D) of length 1.
        reciprocal: False takes all k nearest.
    """
    every = torch.arange(len(vectors), device=vectors.device)
    _, index = top_neighbours(vectors, vectors, k, exclude=every)
    near = torch.zeros(len(vectors), len(vectors), dtype=torch.bool, device=vectors.device).scatter_(1, index, True)
    if reciprocal:
        near &= near.T.clone()
    return F.normalize(vectors + near.to(vectors.dtype) @ vectors, dim=1)
