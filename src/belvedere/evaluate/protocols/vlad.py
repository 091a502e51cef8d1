"""Is the most similar other page of the same hand? The patch tokens of a page as one vector (VLAD), needs labels.

Raven, Matei and Fink, "Self-Supervised Vision Transformers for Writer Retrieval", ICDAR 2024; spec patch_and_pretext 8.
k-means finds centres on a share of the training images' patch tokens; those of a page, or of its windows, become one
vector (`metrics/vlad.py`), whitened by components that are fitted on training pages. Every test page with a partner
asks all others: mAP over the whole ranking, and top-1. Beside them stand the same vectors before whitening, and
averaged with those that find each other; and the network's global vector (its mean over the page), as it is and
whitened alike. Patches without ink are left out where that is asked for; without that it is of any images.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from belvedere.errors import UserError
from belvedere.evaluate.contract import RUN, EvalData, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, mean_percent, resample
from belvedere.evaluate.metrics.vlad import Ink, foreground, reranked, vlad, whitened
from belvedere.evaluate.protocols._pages import By, Pages, pages_of
from belvedere.evaluate.protocols._segmentation import readers
from belvedere.evaluate.protocols.retrieval import average_precision, found, recall_at
from belvedere.images.canvases import Canvases
from belvedere.images.survey import spread
from belvedere.measure.dense import PatchReader
from belvedere.measure.knn import top_neighbours
from belvedere.views.draws import bits

SHOWN, NEAREST = 6, 6
"""Pages whose answers are kept for the report, and answers to each."""
BATCH = 32
"""Images of one size that are read at once."""
JUDGED = 100
"""Training images that tell whether ink is dark or light."""
DIMS, PAGES_A_DIM = 384, 3
"""The paper's components, of 1,182 training pages; fewer pages carry fewer."""
TOKENS_A_CENTER = 10
"""Fewest tokens drawn for each centre."""


class Options(BaseModel):
    """What makes a page, which patches count, and how tokens become a vector.

    Centres, their share of the tokens, components and neighbours are the paper's. It counts patches of 16 x 16 px with
    10 pixels of ink and more, and has no limit of tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    page: By = "file"
    min_ink: int = Field(0, ge=0)
    ink: Literal["auto", "dark", "light"] = "auto"
    threshold: float = Field(128.0, ge=0, le=255)
    enlarged: float = Field(1.0, gt=0)
    centers: int = Field(100, ge=1)
    share: float = Field(0.2, gt=0, le=1)
    tokens: int = Field(262_144, ge=1)
    gmp: float | None = Field(None, gt=0)
    dims: int | None = Field(None, ge=1)
    neighbours: int = Field(2, ge=1)


class Vlad(Protocol):
    """mAP and top-1 in percent, of VLAD and of the global vector."""

    Options = Options

    def run(self, data: EvalData) -> Result:
        """Search among the test pages with every subject.

        Raises:
            UserError: when no test page has a partner, pages are too few or of two labels, or nothing has ink.
        """
        train = pages_of(data.train, data.train_labels, self.options.page)
        test = pages_of(data.test, data.test_labels, self.options.page)
        ink = self._ink(data.train)
        encoded = {
            name: encode_pages(InkReader(reader, self.options, ink), data, train, test, self.options)
            for name, reader in readers(data, self.options.enlarged).items()
        }
        # Patches differ between networks: a page counts where all of them find ink on it.
        inked = [np.all([one.inked[part] for one in encoded.values()], axis=0) for part in (0, 1)]
        learned, asking = train.marked(inked[0]), test.marked(inked[1])
        dims = self._dims(len(learned.rows))
        labels = torch.from_numpy(asking.labels)
        partners = torch.bincount(labels)[labels] - 1 if len(labels) else labels
        asked = (partners > 0).nonzero().squeeze(1)
        if not len(asked):
            raise UserError("vlad: no test page has another one of its label to find; add images, or a test set")
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        draws: dict[str, Any] = {}
        for name, (of_train, of_test) in data.features.items():
            own = encoded[name]
            vectors = self._vectors(own.train[inked[0]], own.test[inked[1]], dims, data.seed) | {
                "global": asking.means(of_test),
                "global_whitened": _white(learned.means(of_train), asking.means(of_test), dims, data.seed),
            }
            items[name] = {}
            for kind, one in vectors.items():
                same = found(one, labels, asked, len(labels) - 1)
                items[name][f"map_{kind}" if kind else "map"] = average_precision(same, partners[asked])
                items[name][f"top1_{kind}" if kind else "top1"] = recall_at(same, 1)
            if name == RUN:
                draws[name] = _answers(vectors[""], asking, asked)
        counts = resample(len(asked), data.seed)
        return Result(
            protocol="vlad",
            metrics={
                name: {metric: mean_percent(values, counts) for metric, values in own.items()}
                for name, own in items.items()
            },
            chosen={},
            settings={
                **self.options.model_dump(exclude={"dims", "centers"}),
                "ink": ink,
                "whitened_to": dims,
                "training_pages": len(learned.rows),
                "test_pages": len(asking.rows),
                "without_ink": int(sum((~marks).sum() for marks in inked)),
                "queries": len(asked),
                "alone": len(labels) - len(asked),
                "patches": {name: one.told for name, one in encoded.items()},
                "chance_percent": {
                    "map": 100 * float(np.mean([chance(n, len(labels) - 1) for n in partners[asked].tolist()])),
                    "top1": 100 * float((partners[asked] / (len(labels) - 1)).mean()),
                },
                "interval": f"95 % bootstrap over {len(asked)} queries, {DRAWS} draws",
            },
            items=items,
            draws=draws,
        )

    def _ink(self, canvases: Canvases) -> Ink:
        """What ink is: as told, or the rarer of dark and light pixels in some training images."""
        if self.options.ink != "auto":
            ink: Ink = self.options.ink
            return ink
        some = spread(len(canvases), JUDGED).tolist()
        light = np.mean([(canvases.pixels(i).mean(-1) >= self.options.threshold).mean() for i in some])
        return "light" if light < 0.5 else "dark"

    def _dims(self, pages: int) -> int:
        """Components kept of so many training pages."""
        dims: int = self.options.dims or max(1, min(DIMS, pages // PAGES_A_DIM))
        if dims >= pages:
            raise UserError(f"vlad: whitening to {dims} components takes more training pages than that, not {pages}")
        return dims

    def _vectors(self, train: Tensor, test: Tensor, dims: int, seed: int) -> dict[str, Tensor]:
        """The test pages (M, D) as they are, whitened, and averaged with their reciprocal neighbours."""
        white = _white(train, test, dims, seed)
        return {"": white, "plain": test, "reranked": reranked(white, self.options.neighbours)}


class InkReader:
    """Patch tokens of images where there is ink."""

    def __init__(self, reader: PatchReader, options: Options, ink: Ink) -> None:
        self.reader, self.options, self.ink = reader, options, ink

    def __call__(self, canvases: Canvases, rows: Sequence[int]) -> Iterator[tuple[Tensor, int]]:
        """(T, D) tokens of each image that count, and how many it has; images of one size go through together."""
        for _, alike in groupby(rows, key=lambda i: tuple(canvases.sizes[i].tolist())):
            same = list(alike)
            for start in range(0, len(same), BATCH):
                batch = same[start : start + BATCH]
                pixels = torch.cat([self.reader.pixels(canvases, i) for i in batch])
                found = self.reader.read_pixels(pixels, [canvases.names[i] for i in batch])
                for tokens, inked in zip(found, self._inked(pixels, (found.shape[2], found.shape[3])), strict=True):
                    yield tokens.flatten(1).T[inked], len(inked)

    def of_page(self, canvases: Canvases, rows: Sequence[int]) -> Tensor:
        """(T, D) tokens of a page's images that count."""
        return torch.cat([tokens for tokens, _ in self(canvases, rows)])

    def _inked(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """(n, h * w) which patches of (n, C, H, W) normalised pixels count."""
        mean, std = (pixels.new_tensor(n).view(-1, 1, 1) for n in (self.reader.encoder.mean, self.reader.encoder.std))
        return foreground(255 * (pixels * std + mean), grid, self.options.min_ink, self.options.threshold, self.ink)


@dataclass(frozen=True)
class Encoded:
    """The training pages (P, K * D) and test pages (M, K * D) of one subject, on the CPU.

    Attributes:
        inked: (P,) and (M,) whether a page has a token at all; the vectors of others are 0.
        told: for the result.
    """

    train: Tensor
    test: Tensor
    inked: tuple[NDArray[np.bool_], NDArray[np.bool_]]
    told: dict[str, Any]


def encode_pages(read: InkReader, data: EvalData, train: Pages, test: Pages, options: Options) -> Encoded:
    """Find the centres, and encode all pages with them."""
    drawn, share = draw_tokens(read, data.train, options, data.seed)
    centers = find_centers(drawn, options.centers, data.seed).to(read.reader.device)

    def encode(canvases: Canvases, pages: Pages) -> tuple[Tensor, NDArray[np.bool_]]:
        vectors = torch.stack([vlad(read.of_page(canvases, rows), centers, options.gmp).cpu() for rows in pages.rows])
        return vectors, vectors.any(1).numpy()

    (of_train, train_inked), (of_test, test_inked) = encode(data.train, train), encode(data.test, test)
    told = {
        "learned_from": len(drawn),
        "centers": len(centers),
        "dimensions": drawn.shape[1],
        "with_ink_percent": 100 * share,
    }
    return Encoded(of_train, of_test, (train_inked, test_inked), told)


def draw_tokens(read: InkReader, canvases: Canvases, options: Options, seed: int) -> tuple[Tensor, float]:
    """(P, D) share of the training tokens, drawn image by image; and what share of all patches counts."""
    most = max(1, options.tokens // len(canvases))
    drawn, counted, every = [], 0, 0
    for i, (tokens, patches) in enumerate(read(canvases, range(len(canvases)))):
        counted, every = counted + len(tokens), every + patches
        order = np.argsort(bits(seed, 0, [i], ["vlad/tokens"], len(tokens))[0, 0], kind="stable")
        taken = np.sort(order[: min(most, math.ceil(options.share * len(tokens)))])
        drawn.append(tokens[torch.from_numpy(taken).to(tokens.device)].cpu())
    return torch.cat(drawn), counted / every


def find_centers(tokens: Tensor, most: int, seed: int) -> Tensor:
    """(K, D) centres of tokens (P, D) by k-means, K at most `most` and a tenth of P.

    Raises:
        UserError: when there are not enough for one.
    """
    k = min(most, len(tokens) // TOKENS_A_CENTER)
    if not k:
        raise UserError(f"vlad: only {len(tokens)} patches to find centres among; lower vlad.min_ink, or add images")
    with warnings.catch_warnings():
        # Fewer distinct tokens than centres leave some without any; the result is no worse for that.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = MiniBatchKMeans(k, n_init=3, random_state=seed).fit(tokens.numpy())
    return torch.from_numpy(model.cluster_centers_)


def chance(partners: int, others: int) -> float:
    """Average precision of a drawn order of `others` pages, expected, where `partners` are to be found."""
    ranks = np.arange(1, others + 1)
    before = (ranks - 1) * (partners - 1) / max(1, others - 1)
    return float(((1 + before) / ranks).mean())


def _white(train: Tensor, test: Tensor, dims: int, seed: int) -> Tensor:
    return whitened(train, test, min(dims, test.shape[1]), seed)


def _answers(vectors: Tensor, pages: Pages, asked: Tensor) -> dict[str, Any]:
    """Some queries and the pages nearest to them, for the report."""
    queries = asked[torch.from_numpy(spread(len(asked), SHOWN))]
    cosines, nearest = top_neighbours(vectors, vectors[queries], NEAREST, exclude=queries)
    return {"pages": pages, "queries": queries, "nearest": nearest, "cosines": cosines}
