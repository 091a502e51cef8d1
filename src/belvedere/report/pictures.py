"""The pictures of a trained encoder, drawn once at the end of a run into `pictures/` and read by the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from belvedere.atomic import write_text
from belvedere.backbones.scattering import ScatNet
from belvedere.errors import UserError
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.measure.features import extract
from belvedere.report.attention import draw_attention
from belvedere.report.drawing import Picture
from belvedere.report.neighbours import draw_neighbours
from belvedere.report.pca import draw_pca
from belvedere.report.scattering import draw_scattering
from belvedere.report.spectrum import draw_spectrum
from belvedere.report.tasks import Shown, draw_tasks
from belvedere.views.draws import permutation

SAMPLE = 2000
CLOSE_UP = 8
"""Images of the attention and the patch pictures."""
TITLES = {
    "neighbours": "Nearest neighbours",
    "attention": "Attention",
    "pca": "Patches in colour",
    "spectrum": "Spectrum",
    "scattering": "Scattering coefficients",
}


def draw_pictures(
    folder: Path,
    encoder: Encoder,
    canvases: Canvases,
    device: torch.device | str = "cpu",
    seed: int = 0,
    shown: Shown | None = None,
) -> None:
    """Draw nearest neighbours, attention, patches in colour and the spectrum into `folder/pictures/`.

    Of a scattering network also its coefficients.

    Beside each picture lies a CSV of its numbers; `pictures.json` holds captions, alternative texts, and for a picture
    that this encoder cannot give the reason. The images are fixed by the seed: at most 2000, the first 8 for close-ups.

    Args:
        folder: of the run.
        encoder: is put on `device` and left there.
        shown: what the run's tasks have to show, from `tasks.ask_tasks`.
    """
    out = folder / "pictures"
    out.mkdir(parents=True, exist_ok=True)
    encoder = encoder.to(device)
    sample = canvases.subset(permutation(seed, 0, len(canvases), "pictures")[:SAMPLE])
    features = extract(encoder, sample, device=device)
    twice = Encoder(
        encoder.backbone,
        (2 * encoder.size[0], 2 * encoder.size[1]),
        encoder.mean,
        encoder.std,
        encoder.reading,
        encoder.precision,
    )
    close = sample.subset(np.arange(min(CLOSE_UP, len(sample))))
    images = [torch.from_numpy(close.pixels(i).copy()).to(device) for i in range(len(close))]
    pixels = twice.preprocess(images)
    drawn = [
        _or_reason("neighbours", lambda: draw_neighbours(out, encoder, sample, features)),
        _or_reason("attention", lambda: draw_attention(out, twice, pixels, close.names)),
        _or_reason("pca", lambda: draw_pca(out, twice, pixels, close.names)),
        _or_reason("spectrum", lambda: draw_spectrum(out, features)),
    ]
    if isinstance(encoder.backbone, ScatNet):
        drawn.insert(1, _or_reason("scattering", lambda: draw_scattering(out, twice, pixels, close.names)))
    drawn += draw_tasks(out, shown or {}, encoder)
    labels = canvases.labels
    found = {
        "images": len(canvases),
        "sample": len(sample),
        "labelled": 0 if labels is None else int((labels >= 0).sum()),
        "classes": 0 if labels is None else len(np.unique(labels[labels >= 0])),
        "pictures": [asdict(picture) for picture in drawn],
    }
    text = json.dumps(found, indent=2)
    write_text(out / "pictures.json", text)


def _or_reason(name: str, draw: Callable[[], Picture]) -> Picture:
    try:
        return draw()
    except UserError as error:
        return Picture(name, TITLES[name], skipped=str(error))
