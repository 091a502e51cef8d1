"""What tells without labels whether a representation is healthy: the formulas (spec evaluation, section 3).

Pure functions of features. Spectra are computed in float64, because small singular values decide them.
What the values mean, and when they are bad, is said in `monitor.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from belvedere.distributed import norms


class PowerLaw(NamedTuple):
    """Fit of covariance eigenvalues by rank^-alpha; `r2` is the (weighted) share of variance explained."""

    alpha: float
    r2: float


class EntropySplit(NamedTuple):
    """Cross-entropy of the student under the teacher, and its two parts, per row (nats): ce = entropy + kl."""

    ce: Tensor
    entropy: Tensor
    kl: Tensor


def feature_std(features: Tensor) -> float:
    """SimSiam's collapse measure: mean over dimensions of the std of normalised rows (N, D), times sqrt(D).

    1 is isotropic, 0 is a constant output.
    """
    rows = F.normalize(features.double(), dim=1)
    return float(rows.std(0).mean()) * math.sqrt(features.shape[1])


def mean_cosine(features: Tensor) -> float:
    """Mean cosine of all pairs of different rows (N, D): 0 is ideal, 1 means that all point the same way."""
    rows = F.normalize(features.double(), dim=1)
    n = len(rows)
    return float((rows.sum(0).square().sum() - rows.square().sum()) / (n * (n - 1)))


def rankme(features: Tensor, *, centred: bool = False, eps: float = 1e-7) -> float:
    """RankMe (arXiv:2210.02885): exp of the entropy of the normalised singular values of (N, D); 1 .. min(N, D)."""
    rows = features.double()
    if centred:
        rows = rows - rows.mean(0)
    s = torch.linalg.svdvals(rows)
    # The floor keeps an all-zero matrix (a constant output, centred) at a defined value.
    p = s / s.sum().clamp(min=torch.finfo(s.dtype).tiny) + eps
    return float((-(p * p.log()).sum()).exp())


def covariance_spectrum(features: Tensor) -> Tensor:
    """(D,) eigenvalues of the covariance of (N, D), largest first, float64, not below 0."""
    rows = features.double()
    rows = rows - rows.mean(0)
    eigenvalues: Tensor = torch.linalg.eigvalsh(rows.T @ rows / (len(rows) - 1))
    return eigenvalues.flip(0).clamp(min=0)


def participation_ratio(spectrum: Tensor) -> float:
    """(sum l)^2 / sum l^2 of eigenvalues (D,): how many directions carry the variance; 0 when there is none."""
    square = spectrum.square().sum().item()
    return spectrum.sum().item() ** 2 / square if square > 0 else 0.0


def alpha_req(spectrum: Tensor, ranks: Tensor | None = None) -> PowerLaw:
    """alpha-ReQ (arXiv:2202.05808): eigenvalues fall like rank^-alpha; a log-log fit weighted by 1/rank.

    Args:
        spectrum: (D,) eigenvalues, largest first.
        ranks: (R,) 0-based ranks to fit over; None is 4 .. min(100, D/2) of the spec, 1-based.

    Returns:
        NaN for both when fewer than three eigenvalues in range are positive.
    """
    if ranks is None:
        ranks = torch.arange(3, max(3, min(100, len(spectrum) // 2)))
    ranks = ranks[spectrum[ranks] > 0]
    if len(ranks) < 3:
        return PowerLaw(math.nan, math.nan)
    x, y = -(ranks + 1).double().log(), spectrum[ranks].double().log()
    w = 1 / (ranks + 1).double()
    w = w / w.sum()
    dx, dy = x - (w * x).sum(), y - (w * y).sum()
    slope = (w * dx * dy).sum() / (w * dx * dx).sum()
    total = (w * dy * dy).sum()
    r2 = 1 - (w * (dy - slope * dx).square()).sum() / total if total > 0 else torch.tensor(math.nan)
    return PowerLaw(slope.item(), r2.item())


def lidar(embeddings: Tensor, *, delta: float = 1e-4, eps: float = 1e-8) -> float:
    """LiDAR (arXiv:2312.04000): effective rank of the linear discriminant matrix, with images as classes.

    Args:
        embeddings: (n, q, D): q views of each of n images.
        delta: added to the diagonal of the within-image covariance.
        eps: added to the eigenvalues, so that a constant output is defined.
    """
    x = embeddings.double()
    n, q, dim = x.shape
    means = x.mean(1)
    between = means - means.mean(0)
    within = (x - means[:, None]).reshape(n * q, dim)
    s_between = between.T @ between / (n - 1)
    s_within = within.T @ within / (n * (q - 1)) + delta * torch.eye(dim, dtype=x.dtype, device=x.device)
    values, vectors = torch.linalg.eigh(s_within)
    whiten = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    spectrum = torch.linalg.eigvalsh(whiten @ s_between @ whiten).clamp(min=0) + eps
    p = spectrum / spectrum.sum()
    return float((-(p * p.log()).sum()).exp())


def alignment(x: Tensor, y: Tensor) -> float:
    """Mean squared distance of the two views of an image on the unit sphere (arXiv:2005.10242); 0 .. 4.

    Args:
        x, y: (N, D), row i of both is the same image.
    """
    x, y = F.normalize(x.double(), dim=1), F.normalize(y.double(), dim=1)
    return (x - y).square().sum(1).mean().item()


def uniformity(features: Tensor) -> float:
    """ln of the mean over pairs of exp(-2 d^2), d Euclidean on the unit sphere (N, D); 0 is constant.

    The floor, a uniform spread, is about -4 + 8/D.
    """
    distance = torch.pdist(F.normalize(features.double(), dim=1))
    return (-2 * distance.square()).exp().mean().log().item()


def instance_recall_at_1(a: Tensor, b: Tensor) -> float:
    """Share of images whose view in `a` (N, D) has its own view in `b` (N, D) as the nearest by cosine; chance 1/N."""
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    return ((a @ b.T).argmax(1) == torch.arange(len(a), device=a.device)).double().mean().item()


def entropy_split(teacher: Tensor, student: Tensor, center: Tensor, tau_t: float, tau_s: float) -> EntropySplit:
    """DINO's loss taken apart (spec objectives 5.7): ce = H(teacher) + KL(teacher || student).

    Args:
        teacher, student: (N, K) logits.
        center: (K,) subtracted from the teacher's.
    """
    log_p = F.log_softmax((teacher - center) / tau_t, dim=1)
    log_q = F.log_softmax(student / tau_s, dim=1)
    p = log_p.exp()
    entropy, ce = -(p * log_p).sum(1), -(p * log_q).sum(1)
    return EntropySplit(ce, entropy, ce - entropy)


@torch.no_grad()
def relative_gap(teacher: nn.Module, student: nn.Module) -> Tensor:
    """norm(teacher - student) / norm(student) over the student's trained parameters that both have (objectives 8).

    0 means that teacher and student share their storage, or that the teacher copies the student at every step.
    """
    target = dict(teacher.named_parameters())
    ours = {name: p for name, p in student.named_parameters() if p.requires_grad and name in target}
    distance = torch.linalg.vector_norm(norms([target[name] - p for name, p in ours.items()]))
    length = torch.linalg.vector_norm(norms([*ours.values()]))
    gap: Tensor = distance / length.clamp(min=torch.finfo(length.dtype).tiny)
    return gap


def attention_entropy(attention: Tensor) -> Tensor:
    """(heads,) entropy over keys in nats, mean over images and queries.

    Args:
        attention: (N, heads, queries, keys), rows sum to 1.
    """
    return -torch.xlogy(attention, attention).sum(-1).mean((0, 2))
