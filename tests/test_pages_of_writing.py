"""Pages of writing through every command: binarized, cut with overlap and without bare paper, everywhere alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

import belvedere
from belvedere.config import from_yaml
from belvedere.errors import UserError
from belvedere.evaluate.classifier import load_classifier
from belvedere.images.cutting import Cutting
from belvedere.sklearn import EncoderTransformer

SETTINGS = {
    "images.binarize": "sauvola",
    "images.tile": 64,
    "images.tile_overlap": 0.5,
    "images.min_ink": 0.02,
    "views.size": 32,
    "views.flip": 0.0,
    "train.batch": 16,
    "train.steps": 3,
    "backbone.name": "vit_tiny",
    "backbone.patch": 8,
    "backbone.width": 32,
    "backbone.depth": 2,
}


def write(root: Path) -> Path:
    """Two hands, three pages each: print, and print pressed harder, below a strip of bare paper."""
    for hand, pressure in (("light", 1.0), ("hard", 0.6)):
        (root / hand).mkdir(parents=True)
        for i in range(3):
            page = data.page()[:, 90 * i : 90 * i + 200]
            dark = 255 * (page / 255) ** (1 / pressure)
            bare = np.full((80, 200), 230)
            Image.fromarray(np.concatenate([bare, dark]).astype(np.uint8)).save(root / hand / f"{i}.png")
    return root


@pytest.mark.slow
def test_pages_from_folder_to_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    pages, run, cutting = write(tmp_path / "pages"), tmp_path / "run", Cutting(64, 0.5, "sauvola", 0.02)
    belvedere.pretrain(pages, "dino", out=run, settings=SETTINGS, device="cpu")
    assert from_yaml(run / "config.yaml").config.images.cutting == cutting
    told = (run / "skipped.csv").read_text()
    assert "too little ink" in told
    assert "#y0x0," in told  # bare paper
    belvedere.embed(run, pages, out=tmp_path / "tiles.npz", device="cpu")
    with np.load(tmp_path / "tiles.npz") as found:
        names = set(found["names"].tolist())
    assert any("#y96x32" in name for name in names)  # between the tiles that lie side by side
    assert not any("#y0x" in name for name in names)
    results = belvedere.evaluate(
        run,
        pages,
        test=pages,
        protocols=["vlad", "finetune"],
        device="cpu",
        floors=["pixels"],
        settings={"finetune.epochs": 1, "vlad.min_ink": 4, "vlad.dims": 2},
    )
    assert results[0].settings["test_pages"] == results[0].settings["queries"] == 6
    assert results[0].settings["ink"] == "light"
    assert results[1].settings["train"]["images"] == len(names)
    assert load_classifier(run / "classifier").cutting == cutting
    said = belvedere.predict(run / "classifier", pages / "hard", device="cpu")
    assert set(said.names) == {name.removeprefix("hard/") for name in names if name.startswith("hard/")}
    small = [pages / "hard" / "0.png"]
    Image.open(small[0]).crop((0, 100, 64, 164)).save(tmp_path / "small.png")
    rows = EncoderTransformer(run=run, device="cpu").fit(small).transform([tmp_path / "small.png"])
    with Image.open(pages / "hard" / "0.png") as page:
        assert page.size == (200, 271)
    assert rows.shape[0] == 1
    with pytest.raises(UserError, match="tiles of 64 px"):
        EncoderTransformer(run=run, device="cpu").fit(small).transform(small)
