"""An exported folder is a timm model: read by timm alone, in a process that cannot import belvedere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor, nn

from belvedere.backbones.build import build_backbone
from belvedere.backbones.export import check_heads, export_timm
from belvedere.errors import UserError

# The second has 4 x 9 = 36 patches: a table that is easily taken for a 6 x 6 one.
SMALL = {"width": 64, "depth": 2}
CASES: dict[str, tuple[str, tuple[int, int], int, dict[str, Any]]] = {
    "vit": ("vit_tiny", (32, 32), 3, SMALL),
    "rectangle": ("vit_tiny", (32, 72), 3, SMALL),
    "registers": ("vit_medium_patch16_reg4_gap_256", (32, 32), 1, SMALL),
    "no-class-token": ("vit_tiny", (32, 32), 3, {**SMALL, "class_token": False}),
    "no-positions": ("vit_tiny", (32, 72), 3, {**SMALL, "pos_embed": False, "init": "mocov3"}),
    "resnet": ("resnet18", (64, 64), 5, {}),
}

READ_BY_TIMM = """
import sys
sys.modules["belvedere"] = None
import timm, torch
from safetensors.torch import load_file
for case in sys.argv[2:]:
    folder = f"{sys.argv[1]}/{case}"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    written = load_file(f"{folder}/model.safetensors")
    state = model.state_dict()
    assert written.keys() == state.keys(), case
    assert all(torch.equal(written[name], state[name]) for name in written), case
    expected = torch.load(f"{folder}/expected.pt")
    gap = (model(expected["pixels"]) - expected["cls"]).abs().max().item()
    tokens = model.forward_features(expected["pixels"])
    tokens = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens
    gap = max(gap, (tokens - expected["tokens"]).abs().max().item())
    assert gap <= 1e-5, (case, gap)
    config = timm.data.resolve_data_config(model=model)
    assert tuple(config["input_size"]) == tuple(expected["pixels"].shape[1:]), config
    assert list(config["mean"]) == [0.25] * config["input_size"][0], config
    print(case)
"""


def photo(channels: int, size: tuple[int, int]) -> Tensor:
    """A real photograph, its first channels repeated as needed."""
    x = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    x = x[[i % 3 for i in range(channels)]][None]
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)


def test_timm_alone_loads_every_tensor_and_gives_the_same_features(tmp_path: Path) -> None:
    for case, (name, size, channels, options) in CASES.items():
        backbone = build_backbone(name, size=size, channels=channels, patch=8, seed=3, **options).eval()
        pixels = photo(channels, size)
        with torch.no_grad():
            features = backbone(pixels)
        export_timm(backbone, tmp_path / case, mean=[0.25] * channels, std=[0.5] * channels)
        tokens = torch.cat([features.prefix, features.patches], dim=1)
        torch.save({"pixels": pixels, "cls": features.cls, "tokens": tokens}, tmp_path / case / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", READ_BY_TIMM, str(tmp_path), *CASES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(CASES)


def test_the_folder_holds_what_a_reader_needs_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    for name in ("fsync", "replace"):
        own = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, own=own, name=name: done.append(name) or own(*given))
    backbone = build_backbone("vit_tiny", size=(16, 24), channels=2, patch=8, width=32, depth=1, seed=0)
    export_timm(backbone, tmp_path / "new" / "run", mean=[0.1, 0.2], std=[0.3, 0.4])
    assert {file.name for file in (tmp_path / "new" / "run").iterdir()} == {"model.safetensors", "config.json"}
    config = json.loads((tmp_path / "new" / "run" / "config.json").read_text())
    assert done == ["fsync", "fsync", "replace", "replace"]
    assert config["positions"] == "dino"
    assert config["num_features"] == 32
    assert config["pretrained_cfg"]["std"] == [0.3, 0.4]


def test_what_timm_cannot_rebuild_is_refused_and_an_older_export_stays(tmp_path: Path) -> None:
    backbone = build_backbone("vit_tiny", size=(16, 16), channels=3, patch=8, width=32, depth=1, seed=0)
    export_timm(backbone, tmp_path, mean=[0.5] * 3, std=[0.5] * 3)
    before = (tmp_path / "model.safetensors").read_bytes()
    backbone.model.stem = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"stem\.bias"):
        export_timm(backbone, tmp_path, mean=[0.5] * 3, std=[0.5] * 3)
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_args": []}', '{"model_args": 3}', "[" * 100_000])
def test_a_damaged_description_is_told_in_a_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as error:
        check_heads(tmp_path, 3)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: is damaged")
