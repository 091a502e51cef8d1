"""Do patches find the same place in another view of their image? The dense quality of features without any label.

Spec evaluation, section 3 (patch correspondence); EsViT (arXiv:2106.09785) asks the same of its regions. Two crops of
an image are drawn by the view engine, with its flips and colours, so their boxes are known. Every patch of the first
view whose centre lies inside the second one looks there for the patch nearest to it by cosine; it is right if that one
is the true place's or one of the eight around it. Nothing is learned or chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from belvedere.errors import UserError
from belvedere.evaluate.contract import RUN, EvalData, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, mean_percent, resample
from belvedere.evaluate.protocols._segmentation import readers
from belvedere.images.canvases import Canvases
from belvedere.images.survey import spread
from belvedere.measure.dense import PatchReader, whole_patches
from belvedere.measure.encoder import Encoder
from belvedere.views.params import ViewParams
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import ViewSettings, build_slots
from belvedere.views.views import Views

FROM, TO = "global_a", "global_b"
FINE = 7
"""Cells a side that make a place worth finding (7 x 7 of a 224 px network at stride 32): coarser grids see the views at
twice the training size."""
COARSEST = 4
"""With fewer cells a side, most of a view lies within one cell of anywhere."""
SHOWN = 6
"""Images whose matches are kept for the report."""
CROP = (0.4, 1.0)
"""Share of the image in a view: DINO's global crops, which always overlap."""


class Options(BaseModel):
    """How many of the test images to ask, evenly spaced."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    images: int = Field(256, ge=1)


class Correspondence(Protocol):
    """Share of patches that find their place within one cell, mean over images, in percent."""

    Options = Options
    needs = ()
    quick = True

    def run(self, data: EvalData) -> Result:
        """Match two views of each image with every subject whose grid is fine enough.

        Raises:
            UserError: when the run's grid has fewer than four cells a side, or no two views overlap.
        """
        rows = spread(len(data.test), self.options.images)
        shares: dict[str, NDArray[np.float64]] = {}
        grids: dict[str, list[int]] = {}
        chance: dict[str, NDArray[np.float64]] = {}
        draws: dict[str, Any] = {}
        coarse: dict[str, list[int]] = {}
        for name, reader in readers(data).items():
            grid = reader.encoder.backbone.grid(view_size(reader.encoder))
            if min(grid) < COARSEST:
                coarse[name] = list(grid)
                continue
            found: list[tuple[float, float]] = []
            kept: list[Match] = []
            for i in rows.tolist():
                one = match(reader, data.test, i, data.seed)
                found.append((one.share(), one.chance()))
                kept += [one] if len(kept) < SHOWN else []
            shares[name], chance[name] = np.array(found).T
            grids[name] = list(kept[0].grid)
            draws[name] = {"rows": rows[:SHOWN].tolist(), "matches": kept}
        if RUN in coarse:
            height, width = coarse[RUN]
            raise UserError(
                f"correspondence: the network sees a view as {height} x {width} cells, where nearly everything is "
                f"within one cell; it takes {COARSEST} x {COARSEST}: train with a smaller patch or at a larger size"
            )
        overlapping = np.isfinite(list(shares.values())).all(0)
        if not overlapping.any():
            raise UserError("correspondence: no patch of any image is seen by both views; give more or larger images")
        counts = resample(int(overlapping.sum()), data.seed)
        items = {name: {"within1": values[overlapping]} for name, values in shares.items()}
        return Result(
            protocol="correspondence",
            metrics={name: {"within1": mean_percent(one["within1"], counts)} for name, one in items.items()},
            chosen={},
            settings={
                "grid": grids,
                "chance_percent": {name: 100 * float(values[overlapping].mean()) for name, values in chance.items()},
                "too_coarse": coarse,
                "images": int(overlapping.sum()),
                "without_overlap": int((~overlapping).sum()),
                "views": f"two crops of {CROP[0]:.0%} to {CROP[1]:.0%} of the image, flips and colours as DINO's",
                "interval": f"95 % bootstrap over {int(overlapping.sum())} test images, {DRAWS} draws",
            },
            items=items,
            draws=draws,
        )


@dataclass(frozen=True)
class Match:
    """Where the patches of one view of an image were found in another, cells row by row.

    Attributes:
        views: pixels (C, H, W) of both, normalised, on the CPU.
        grid: (h, w) of both.
        place: (T, 2) row and column of each patch's true place in the other view, in cells, its own centre's.
        inside: (T,) whether that lies in the other view.
        found: (T,) cell of the other view that was nearest.
    """

    views: tuple[Tensor, Tensor]
    grid: tuple[int, int]
    place: Tensor
    inside: Tensor
    found: Tensor

    def right(self) -> Tensor:
        """(T,) whether the cell found is the true one or a neighbour of it; False outside."""
        cells = torch.stack([self.found // self.grid[1], self.found % self.grid[1]], 1)
        return ((cells - self.place.floor()).abs() <= 1).all(1) & self.inside

    def share(self) -> float:
        """Share of the patches seen by both views that are right, NaN where there are none."""
        return float(self.right().sum() / self.inside.sum())

    def chance(self) -> float:
        """The same for patches that answer any cell alike: about 9 / h / w, less at the border."""
        cells = self.place[self.inside].floor()
        limit = torch.tensor(self.grid) - 1
        near = (torch.minimum(cells + 1, limit) - (cells - 1).clamp(min=0) + 1).prod(1)
        return float(near.mean()) / (self.grid[0] * self.grid[1])


def match(reader: PatchReader, canvases: Canvases, i: int, seed: int) -> Match:
    """Two views of image i, and where the patches of the first are found in the second."""
    encoder = reader.encoder
    views = two_views(encoder, canvases, i, seed)
    sides = torch.cat([views[FROM], views[TO]]).to(reader.device)
    features = reader.patches(sides)
    grid = features.shape[2], features.shape[3]
    source, target = F.normalize(features.flatten(2), dim=1)
    place = true_places(views.params, grid)[0]
    inside = ((place >= 0) & (place < torch.tensor(grid))).all(1)
    found = (source.T @ target).argmax(1).cpu()
    return Match((views[FROM][0], views[TO][0]), grid, place, inside, found)


def two_views(encoder: Encoder, canvases: Canvases, i: int, seed: int) -> Views:
    """The two views of one image; what is drawn depends on the seed and the image alone."""
    settings = ViewSettings(
        size=view_size(encoder), global_scale=CROP, blur_p=(0.0, 0.0, 0.0), solarize_p=(0.0, 0.0, 0.0)
    )
    slots = build_slots(settings, canvases.channels)
    params = sample_views(slots, [i], canvases.sizes[i : i + 1], epoch=0, seed=seed)
    return render_views(canvases.batch([i]), params, mean=encoder.mean, std=encoder.std)


def view_size(encoder: Encoder) -> tuple[int, int]:
    """(h, w) of the views: the training size in whole patches, or twice that where its grid is coarse."""
    scale = 1 if min(encoder.backbone.grid(encoder.size)) >= FINE else 2
    return whole_patches(encoder, scale * encoder.size[0], scale * encoder.size[1])


def true_places(params: ViewParams, grid: tuple[int, int]) -> Tensor:
    """(N, T, 2) row and column, in cells of the second view, of the centre of each cell of the first.

    Cell r covers [r, r + 1); places outside the second view lie below 0 or at h, w and above.
    """
    (height, width), size = params.size[params.slot(FROM)], torch.tensor(params.size[params.slot(TO)])
    rows = (torch.arange(grid[0]) + 0.5) * height / grid[0] - 0.5
    columns = (torch.arange(grid[1]) + 0.5) * width / grid[1] - 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    centres = torch.stack([x.flatten(), y.flatten(), torch.ones(x.numel())])
    there, back = params.view_to_source(FROM).float(), params.view_to_source(TO).float()
    in_source = there @ centres
    in_view = torch.linalg.solve(back[:, :, :2], in_source - back[:, :, 2:])
    places: Tensor = (in_view.flip(1).transpose(1, 2) + 0.5) * torch.tensor(grid) / size
    return places
