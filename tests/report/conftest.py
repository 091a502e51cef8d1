"""Run folders made by hand, and a tiny encoder with real images."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from safetensors.numpy import save_file

from belvedere import config as configuration
from belvedere.backbones.build import build_backbone
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.bands import RULES
from belvedere.measure.encoder import Encoder

STEPS = 60


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A run folder as the loop writes it: `done` of 60 steps, with or without labels, looks and other files."""

    def make(
        name: str = "run",
        *,
        done: int = STEPS,
        looks: bool = True,
        knn: float | None = 71.2,
        start: float | None = None,
        scalars: dict[str, float] | None = None,
        skipped: list[tuple[str, str]] | None = None,
        word: str = "healthy",
        color: str = "green",
        why: tuple[str, ...] = ("All values lie within their bands.",),
        model: bool = True,
        recipe: str = "simclr",
        given: dict[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        given = {"train.batch": 16, **(given or {})}
        resolved = configuration.resolve(recipe, given).with_values(
            {"train.steps": (STEPS, "2 minutes at 2 s a step, measured"), "views.size": (32, "images are 32 px")}
        )
        (folder / "config.yaml").write_text(configuration.to_yaml(resolved))
        lines: list[dict[str, Any]] = []
        for step in range(done):
            entry: dict[str, Any] = {"step": step, "loss": 5 - step / STEPS, "lr": 1e-3}
            if step % 10 == 0:
                entry |= {"weight_decay": 0.1, "grad/all": 2.0, "grad/patch_embed": 0.5, "seconds": 0.5, "waited": 0.1}
                entry |= {"negative_cosine": 0.1, **(scalars or {})}
            lines.append(entry)
        if looks:
            for step in (0, done):
                values: dict[str, Any] = {"step": step, "head_std": 0.9, "mean_cosine": 0.85, "rankme": 20.0}
                if knn is not None:
                    values |= {"knn": knn if step else 35.1}
                    values |= {} if step else {"knn_pixels": 42.0, "knn_untrained": 35.1}
                    values |= {"knn_start": start} if start is not None and not step else {}
                judged = {rule.value: values[rule.value] for rule in RULES if rule.value in values}
                told = {"health": word, "color": color, "why": list(why)}
                lines.append({"step": step, "look": values, "judged": judged, **told})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with (folder / "skipped.csv").open("w", newline="", errors="surrogateescape") as file:
            csv.writer(file).writerows([("path", "reason"), *(skipped or [])])
        if model:
            save_file({"head.weight": np.zeros((30, 10), np.float32)}, folder / "model.safetensors")
        return folder

    return make


@pytest.fixture
def make_canvases(tmp_path: Path) -> Callable[..., Canvases]:
    """40 real cut-outs of 32 x 32, labelled by the photograph they come from, in classes of hostile names."""

    def make(labels: bool = True, channels: int = 3) -> Canvases:
        cuts, origin = [], []
        photos = (skimage.data.astronaut(), skimage.data.coffee())
        for number, photo in enumerate(photos):
            for y in range(0, 320, 80):
                for x in range(0, 400, 80):
                    cuts.append(photo[y : y + 32, x : x + 32, :channels])
                    origin.append(number)
        path = tmp_path / f"cuts-{labels}-{channels}.npz"
        arrays = {"images": np.stack(cuts)} | ({"labels": np.array(origin)} if labels else {})
        np.savez(path, **arrays)
        return open_canvases(find_images(path), 32, cache_dir=tmp_path, workers=1, progress=False)

    return make


@pytest.fixture
def make_encoder() -> Callable[..., Encoder]:
    """A tiny network with random weights."""

    def make(name: str = "vit_tiny", channels: int = 3, **settings: Any) -> Encoder:
        shape: dict[str, Any] = {"patch": 8, "width": 32, "depth": 2, "heads": 2} if name.startswith("vit") else {}
        backbone = build_backbone(name, size=(32, 32), channels=channels, seed=0, **{**shape, **settings})
        return Encoder(backbone, (32, 32), [0.5] * channels, [0.25] * channels)

    return make
