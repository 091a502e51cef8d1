"""The main job on real photographs that are already on the machine: they ship inside scikit-image and scikit-learn.

The question: from which photograph was a tile cut? Tiles are gray, because colour alone would give the photograph away
(an untrained network answers from it), and held-out tiles come from the right part of each photograph, which no
training tile touches. So only texture and shape can answer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from belvedere.errors import UserError

TILE = 48
STRIDE = 16
TRAIN_SHARE = 0.6
# At most so many tiles of a photograph, so that the large ones do not outvote the small ones.
MOST_TRAIN, MOST_HELD_OUT = 250, 60
SETTINGS = {
    "views.size": TILE,
    "backbone.patch": 8,
    "backbone.width": 192,
    "backbone.depth": 4,
    "train.minutes": 3.0,
}


def run(out: Path, device: str = "auto") -> Path:
    """Cut the tiles, pretrain, evaluate on held-out tiles, and print where the report is; returns its path.

    Raises:
        UserError: when scikit-image is not installed.
    """
    from belvedere import api

    images = write_tiles(out / "images")
    train, held_out = images / "train", images / "held_out"
    counts = [sum(1 for _ in folder.rglob("*.png")) for folder in (train, held_out)]
    print(f"{images}: an ordinary image folder, {counts[0]} training and {counts[1]} held-out tiles of {TILE} px")
    print("The question: from which photograph was a held-out gray tile cut? Training uses no labels.\n")
    folder = api.pretrain(
        train, "simclr", out=out / "run", device=device, resume=(out / "run").is_dir(), settings=dict(SETTINGS)
    )
    result = api.evaluate(folder, train, test=held_out, protocols=["knn"], device=device)[0]
    top1 = {name: numbers["top1"].value for name, numbers in result.metrics.items() if "top1" in numbers}
    page = api.report(folder)
    print(
        f"\nk-NN on held-out tiles: {top1['run']:.1f} % (raw pixels {top1['pixels']:.1f} %, "
        f"untrained network {top1['untrained']:.1f} %)\nreport: {page.absolute()}"
    )
    return page


def photographs() -> dict[str, NDArray[np.uint8]]:
    """Name -> gray photograph [h,w] uint8, sorted by name.

    Raises:
        UserError: when scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError:
        raise UserError('the demo needs photographs: pip install "belvedere[demo]"') from None
    from sklearn.datasets import load_sample_image

    found: dict[str, Any] = {
        "astronaut": data.astronaut(),
        "brick": data.brick(),
        "camera": data.camera(),
        "cat": data.cat(),
        "cell": data.cell(),
        "china": load_sample_image("china.jpg"),
        "clock": data.clock(),
        "coffee": data.coffee(),
        "coins": data.coins(),
        "flower": load_sample_image("flower.jpg"),
        "grass": data.grass(),
        "gravel": data.gravel(),
        "hubble": data.hubble_deep_field(),
        "moon": data.moon(),
        "motorcycle": data.stereo_motorcycle()[0],
        "page": data.page(),
        "retina": data.retina(),
        "rocket": data.rocket(),
        "text": data.text(),
        "tissue": data.immunohistochemistry(),
    }
    return {name: np.asarray(Image.fromarray(pixels).convert("L")) for name, pixels in found.items()}


def cut(photograph: NDArray[np.uint8]) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """(training, held-out) tiles of a photograph: overlapping ones of its left part, adjoining ones of its right."""
    height, width = photograph.shape
    border = int(TRAIN_SHARE * width)

    def grid(left: int, right: int, stride: int) -> list[NDArray[np.uint8]]:
        return [
            photograph[y : y + TILE, x : x + TILE]
            for y in range(0, height - TILE + 1, stride)
            for x in range(left, right - TILE + 1, stride)
        ]

    return _thin(grid(0, border, STRIDE), MOST_TRAIN), _thin(grid(border, width, TILE), MOST_HELD_OUT)


def _thin(tiles: list[NDArray[np.uint8]], most: int) -> list[NDArray[np.uint8]]:
    """At most so many, evenly spaced."""
    chosen = np.unique(np.linspace(0, len(tiles) - 1, min(most, len(tiles))).round().astype(int))
    return [tiles[i] for i in chosen]


def write_tiles(folder: Path) -> Path:
    """Write `train/<photograph>/<n>.png` and `held_out/...` below `folder`, unless they are there already."""
    if (folder / "held_out").is_dir():
        return folder
    beside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    for name, photograph in photographs().items():
        for part, tiles in zip(("train", "held_out"), cut(photograph), strict=True):
            place = beside / part / name
            place.mkdir(parents=True)
            for number, tile in enumerate(tiles):
                Image.fromarray(tile).save(place / f"{number:03}.png")
    beside.rename(folder)
    return folder
