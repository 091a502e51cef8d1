"""What tells two views of an image apart: overlap, areas, distance and colour, from the record alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from belvedere.views.params import ViewParams

COLOURS = ("brightness", "contrast", "saturation", "hue")


def pair_facts(params: ViewParams, a: str, b: str, masked: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Facts of a pair of views of every image, each `[N]` float32 (spec view_policies 5, V1 to V6).

    `iou` of the crop boxes; `area_small`, `area_large`: the crops as shares of the image; `distance` of the crops'
    centres and `corner_distance` of their upper left corners, as shares of the image's diagonal; `delta_*`: absolute
    differences of the colour factors (hue in turns); `delta_gray`, `delta_blur`: 1 where only one view has it.
    `masked`, where it is given by slot as the share `[N]` of a view's patches that are masked: the mean of both views.
    """
    i, j = params.slot(a), params.slot(b)
    area = params.h * params.w / (params.src_h * params.src_w)
    diagonal = torch.hypot(params.src_h.float(), params.src_w.float())
    centre_y, centre_x = params.top + params.h / 2, params.left + params.w / 2
    facts = {
        "iou": params.iou(i, j),
        "area_small": torch.minimum(area[i], area[j]),
        "area_large": torch.maximum(area[i], area[j]),
        "distance": torch.hypot(centre_y[i] - centre_y[j], centre_x[i] - centre_x[j]) / diagonal,
        "corner_distance": torch.hypot(
            (params.top[i] - params.top[j]).float(), (params.left[i] - params.left[j]).float()
        )
        / diagonal,
    }
    for name in COLOURS:
        factor = getattr(params, name)
        facts[f"delta_{name}"] = (factor[i] - factor[j]).abs()
    facts["delta_gray"] = params.gray[i] != params.gray[j]
    facts["delta_blur"] = (params.sigma[i] > 0) != (params.sigma[j] > 0)
    if masked:
        facts["masked"] = (masked[a] + masked[b]) / 2
    return {name: fact.float() for name, fact in facts.items()}
