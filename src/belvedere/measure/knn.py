"""Weighted k-nearest-neighbour classification of frozen features (DINO, arXiv:2104.14294, section 4; spec 2.1).

Cosine similarity, the k nearest training images, votes exp(similarity / T) summed per class, the largest sum wins.
Equal similarities are ordered by training index and equal sums go to the lowest class index, so a result never
depends on chunking or on a sort's whims. Plain torch: faiss measured no faster below five million vectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07
# 1024 x 65536 float32 similarities are 256 MB, however large the gallery is.
QUERY_CHUNK, GALLERY_CHUNK = 1024, 65_536


def ordered_topk(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest columns of every row, ordered by (-similarity, column).

    Args:
        similarity: (M, G); k is at most G.

    Returns:
        (M, k) similarities and (M, k) int64 columns.
    """
    values, columns = similarity.topk(k, dim=1)
    columns, by_column = columns.sort(dim=1)
    values, by_value = values.gather(1, by_column).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, by_value)
    # topk picks any of the columns that tie for the last place; only such rows need the slow stable sort.
    tied = ((similarity >= values[:, -1:]).sum(1) > k).nonzero().squeeze(1)
    if len(tied):
        best = similarity[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
        columns[tied], values[tied] = best, similarity[tied].gather(1, best)
    return values, columns


def top_neighbours(
    train: Tensor,
    test: Tensor,
    k: int,
    *,
    exclude: Tensor | None = None,
    query_chunk: int = QUERY_CHUNK,
    gallery_chunk: int = GALLERY_CHUNK,
) -> tuple[Tensor, Tensor]:
    """The k nearest training rows of every test row by cosine, chunked over both sides with a running merge.

    Args:
        train: (G, D) features, normalised here in float32.
        test: (M, D) features on the same device.
        k: neighbours; when the gallery has fewer, all of it.
        exclude: (M,) index of the training row that a query must not find (leave-one-out), by index because a
            duplicate may stand before the image itself.

    Returns:
        (M, k) float32 cosines and (M, k) int64 training indices, ordered by (-cosine, index).
    """
    queries = F.normalize(test.float(), dim=1)
    k = min(k, len(train) - (exclude is not None))
    if k < 1:
        raise ValueError("k-NN needs at least one training image besides the query")
    found = []
    for start in range(0, len(queries), query_chunk):
        rows = slice(start, start + query_chunk)
        found.append(_search(train, queries[rows], k, None if exclude is None else exclude[rows], gallery_chunk))
    return torch.cat([cosines for cosines, _ in found]), torch.cat([index for _, index in found])


def _search(
    gallery: Tensor, queries: Tensor, k: int, exclude: Tensor | None, gallery_chunk: int
) -> tuple[Tensor, Tensor]:
    best = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(gallery), gallery_chunk):
        # By chunk, so that a large gallery needs no second copy.
        similarity = queries @ F.normalize(gallery[start : start + gallery_chunk].float(), dim=1).T
        if exclude is not None:
            here = (exclude >= start) & (exclude < start + similarity.shape[1])
            rows = here.nonzero().squeeze(1)
            similarity[rows, exclude[rows] - start] = -torch.inf
        values, columns = ordered_topk(similarity, min(k, similarity.shape[1]))
        # What was found before has lower indices and stands left, so order by column is order by index.
        merged, merged_index = torch.cat([best, values], 1), torch.cat([index, columns + start], 1)
        best, chosen = ordered_topk(merged, min(k, merged.shape[1]))
        index = merged_index.gather(1, chosen)
    return best, index


def count_votes(cosines: Tensor, labels: Tensor, num_classes: int, temperature: float = TEMPERATURE) -> Tensor:
    """Sum exp(cosine / T) per class.

    Args:
        cosines: (M, k) of the neighbours.
        labels: (M, k) class ids of the neighbours.

    Returns:
        (M, num_classes) float32 on the CPU, where the order of additions is fixed.
    """
    weights = (cosines.float().cpu() / temperature).exp()
    return weights.new_zeros(len(weights), num_classes).scatter_add_(1, labels.cpu(), weights)


def knn_votes(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    k: int,
    temperature: float = TEMPERATURE,
    *,
    num_classes: int,
    exclude: Tensor | None = None,
    query_chunk: int = QUERY_CHUNK,
    gallery_chunk: int = GALLERY_CHUNK,
) -> Tensor:
    """(M, num_classes) votes of the k nearest training images; arguments as `top_neighbours`.

    Args:
        train_labels: (G,) int64 class ids below `num_classes`; classes missing from train or test do no harm.
    """
    cosines, index = top_neighbours(
        train, test, k, exclude=exclude, query_chunk=query_chunk, gallery_chunk=gallery_chunk
    )
    return count_votes(cosines, train_labels.cpu()[index.cpu()], num_classes, temperature)


def best_classes(votes: Tensor, n: int = 1) -> Tensor:
    """(M, n) classes with the most votes, the lowest class index first among equals."""
    return ordered_topk(votes, n)[1]


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    k: int,
    temperature: float = TEMPERATURE,
    *,
    num_classes: int,
) -> float:
    """Top-1 accuracy in percent; shapes as `knn_votes`, `test_labels` (M,)."""
    votes = knn_votes(train, train_labels, test, k, temperature, num_classes=num_classes)
    return 100.0 * (best_classes(votes).squeeze(1) == test_labels.cpu()).double().mean().item()


def half_width(percent: float, images: int) -> float:
    """Half of the 95 % interval of an accuracy in percent, binomial."""
    p = min(max(percent / 100, 0.0), 1.0)
    return 196 * math.sqrt(p * (1 - p) / max(images, 1))
