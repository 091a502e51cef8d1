"""Every `belvedere` command and every Python block of the README and docs/ runs, in the order in which they stand."""

from __future__ import annotations

import re
import shlex
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from belvedere.backbones.build import build_backbone
from belvedere.backbones.export import export_timm
from shapes import draw_shapes
from tiny import Command

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# So few steps of so small a network that a page takes seconds.
TINY = {
    "train.batch": 16,
    "backbone.name": "vit_tiny",
    "backbone.width": 32,
    "backbone.depth": 2,
    "monitor.knn": 60,
    "monitor.probe": 16,
    "monitor.every": 1.0,
}


# The same of `belvedere generate`.
TINY_GENERATOR = {
    "images.size": 16,
    "train.batch": 16,
    "generator.dim": 12,
    "generator.depth": 1,
    "generator.heads": 2,
    "discriminator.dim": 12,
    "discriminator.depth": 1,
    "discriminator.heads": 2,
    "samples.measured": 64,
}
# Stands in for weights that timm would download.
PUBLIC = "timm:local-dir:public"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`photos/`, `labelled/`, `others/`: tiles of photographs in class folders; weights to start from.

    `slides/` holds larger photographs, `pages/` print of two kinds, `shards/` and `photos.parquet` the same tiles,
    `programs/` files that are no images, `shapes/` images with objects.
    """
    from skimage import data

    network = build_backbone("vit_tiny", size=(64, 64), channels=3)
    small = build_backbone("vit_tiny", size=(64, 64), channels=3, width=32, depth=2)
    export_timm(small, tmp_path / "public", mean=(0.5,) * 3, std=(0.2,) * 3)
    torch.save({"teacher": {f"backbone.{k}": x for k, x in network.model.state_dict().items()}}, tmp_path / "dino.pth")

    for folder in ("photos", "labelled", "others"):
        for name, picture in (("cat", data.cat()), ("rocket", data.rocket()), ("coffee", data.coffee())):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(20):
                y, x = divmod(i, 5)
                tile = np.ascontiguousarray(picture[y * 64 : y * 64 + 64, x * 64 : x * 64 + 64])
                Image.fromarray(tile).save(tmp_path / folder / name / f"{i}.png")
    files = sorted((tmp_path / "labelled").rglob("*.png"))
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / f"shards/photos-{shard:03}.tar", "w") as tar:
            for file in files[shard::3]:
                tar.add(file, file.relative_to(tmp_path))
    table = pyarrow.table({"image": [file.read_bytes() for file in files], "label": [f.parent.name for f in files]})
    pyarrow.parquet.write_table(table, tmp_path / "photos.parquet")
    for name, picture in (("eye", data.retina()), ("sky", data.hubble_deep_field())):
        (tmp_path / "slides" / name).mkdir(parents=True)
        for i, turned in enumerate((picture, picture[::-1])):
            Image.fromarray(turned).save(tmp_path / "slides" / name / f"{i}.jpg")
    for name, picture in (("page", data.page()), ("text", data.text())):
        for split in ("train", "test"):
            (tmp_path / "pages" / split / name).mkdir(parents=True)
        for i in range(4):
            folder = tmp_path / "pages" / ("test" if i % 2 else "train") / name
            Image.fromarray(np.tile(picture[:, 40 * i :], (2, 1))).save(folder / f"{i}.png")
    for kind, content in (("text", files[0].read_bytes()), ("code", Path(__file__).read_bytes())):
        (tmp_path / "programs" / kind).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "programs" / kind / str(i)).write_bytes(content[i * 50 : i * 50 + 2500])
    draw_shapes(tmp_path / "shapes", 16, 3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def without_shape(settings: dict[str, Any]) -> dict[str, Any]:
    """Without those that given weights decide."""
    return {key: value for key, value in settings.items() if not key.startswith("backbone.")}


def shortened(command: str) -> list[str]:
    """The words of a command after `belvedere`, one that trains cut down to seconds."""
    words = shlex.split(command, comments=True)[1:]
    goes_on = "--resume" in words and (Path(words[words.index("--out") + 1]) / "config.yaml").exists()
    if words[0] == "pretrain" and not goes_on:
        if "--minutes" in words:
            words[words.index("--minutes") + 1] = "0.05"
        elif "--epochs" in words:
            words[words.index("--epochs") + 1] = "1"
        else:
            words.append("train.steps=4")
        tiny = without_shape(TINY) if "--init" in words else TINY
        words += [f"{key}={value}" for key, value in tiny.items()]
    if words[0] == "profile":
        words += ["--seconds=1", *(f"{key}={value}" for key, value in TINY.items())]
    if words[0] == "generate" and "--resume" not in words:
        words[words.index("--minutes") + 1] = "0.05"
        words += [f"{key}={value}" for key, value in TINY_GENERATOR.items()]
    return [re.sub(r"timm:vit_[\w.]+", PUBLIC, word) for word in words]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_runs(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import belvedere

    whole = belvedere.pretrain

    def pretrain(data: str, recipe: str | None = None, *, minutes: float, **short: Any) -> Path:
        given = "init" in short
        short |= {"init": PUBLIC} if given else {}
        return whole(data, recipe, minutes=minutes / 600, settings=without_shape(TINY) if given else TINY, **short)

    monkeypatch.setattr(belvedere, "pretrain", pretrain, raising=False)
    for language, content in blocks(page):
        if language == "python":
            exec(compile(content, str(page), "exec"), {})
        for line in content.splitlines():
            if not language and line.startswith("belvedere ") and not line.startswith("belvedere demo"):
                command = Command(shortened(line), place / "said.txt", place / "cache", place)
                assert command.wait(300) == 0, f"{line}\n{command.output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
