"""FID and KID by torch-fidelity: the same numbers as ours, in Inception's features or an encoder's, and refusals."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from test_generate_runs import words
from torch import Tensor, nn

from belvedere import api
from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.evaluate.metrics.frechet import frechet_distance
from belvedere.generate.fidelity import BATCH, judge
from belvedere.generate.quality import to_uint8
from belvedere.generate.trainer import latents, paint
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from belvedere.measure.features import extract
from newcomer import belvedere, photo_folder

pytest.importorskip("torch_fidelity")


class Noise(nn.Module):
    """A generator of its latents' colours."""

    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 0.2))

    def forward(self, noise: Tensor) -> Tensor:
        return (0.5 + self.scale * noise)[:, :, None, None].expand(-1, -1, 16, 16)


@pytest.fixture(scope="module")
def canvases(tmp_path_factory: pytest.TempPathFactory) -> Canvases:
    folder = photo_folder(tmp_path_factory.mktemp("fidelity") / "photos", 100, 16)
    return open_canvases(find_images(folder, labels="none"), 16, channels=3, progress=False)


def encoder_of(channels: int = 3) -> Encoder:
    backbone = build_backbone("vit_tiny", size=(16, 16), channels=channels, seed=0, patch=8, width=32, depth=1)
    return Encoder(backbone, (16, 16), [0.5] * channels, [0.25] * channels).eval()


def test_it_is_our_distance_of_the_same_images(canvases: Canvases) -> None:
    number, encoder = 40, encoder_of()
    told = judge(Noise(), 16, canvases, encoder, number, 0, "cpu")  # type: ignore[arg-type]
    assert (told.generated, told.real) == (number, number)
    made = to_uint8(paint(Noise(), latents(0, 0, number, 3, "sample")))  # type: ignore[arg-type]
    with torch.no_grad():
        first = encoder(encoder.preprocess(made)).double().numpy()
    features = extract(encoder, canvases).double().numpy()
    # Which of them were drawn is not told: the distance lies near that of any as many.
    near = [frechet_distance(first, features[np.random.default_rng(k).permutation(100)[:number]]) for k in range(8)]
    assert min(near) * 0.8 < told.fid < max(near) * 1.2
    assert told.floor is not None
    assert 0 < told.floor < told.fid
    assert told.kid > 0
    assert told.inception_score is None
    assert judge(Noise(), 16, canvases, encoder, number, 0, "cpu") == told  # type: ignore[arg-type]


def test_all_real_images_where_there_are_fewer(canvases: Canvases) -> None:
    """Then every one is compared, so the number is exactly ours; there is no floor."""
    encoder, number = encoder_of(), BATCH + 60
    told = judge(Noise(), 16, canvases, encoder, number, 3, "cpu")  # type: ignore[arg-type]
    made = to_uint8(paint(Noise(), latents(3, 0, number, 3, "sample")))  # type: ignore[arg-type]
    with torch.no_grad():
        first = encoder(encoder.preprocess(made)).double().numpy()
    real = extract(encoder, canvases).double().numpy()
    assert (told.real, told.floor) == (len(canvases), None)
    assert told.fid == pytest.approx(frechet_distance(first, real), rel=1e-4)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of Inception's form; its weights are random, since the trained ones are no part of this project."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    kind = module.FeatureExtractorInceptionV3
    with (
        mock.patch.object(module, "load_state_dict_from_url", return_value={}),
        mock.patch.object(kind, "load_state_dict", return_value=None),
    ):
        network = kind("inception-v3-compat", ["2048"])
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), file)
    return file


@pytest.mark.slow
def test_inception_from_a_file_through_the_command_line(inception: Path, tmp_path: Path) -> None:
    photo_folder(tmp_path / "photos", 24, 20)
    assert belvedere(tmp_path, "generate", tmp_path / "photos", "--out", tmp_path / "run", *words()).code == 0
    said = belvedere(
        tmp_path, "fidelity", tmp_path / "run", tmp_path / "photos", "--inception", inception, "--number", 10
    )
    assert said.code == 0, said.text
    assert re.search(r"10 images of the run, 10 of yours\nFID \d", said.text)
    assert "inception score" in said.text
    assert "FID of as many other real images" in said.text
    said = belvedere(tmp_path, "fidelity", tmp_path / "photos", tmp_path / "photos", "--inception", inception)
    assert said.code == 2
    assert "is no run of `belvedere generate`" in said.text


def test_refusals(canvases: Canvases, tmp_path: Path) -> None:
    for given in ({}, {"encoder": "run", "inception": "file"}):
        with pytest.raises(UserError, match="either --encoder RUN or --inception FILE"):
            api.fidelity(tmp_path, tmp_path, **given)
    with pytest.raises(UserError, match=r"no such file; save https://"):
        judge(Noise(), 16, canvases, tmp_path / "none.pth", 4, 0, "cpu")  # type: ignore[arg-type]
    torch.save(encoder_of().state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no weights of Inception"):
        judge(Noise(), 16, canvases, tmp_path / "other.pth", 4, 0, "cpu")  # type: ignore[arg-type]


def test_nothing_in_a_file_of_weights_is_run(canvases: Canvases, tmp_path: Path) -> None:
    torch.save({"Mixed_7c.branch_pool.conv.weight": Payload(tmp_path / "run.txt")}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="is damaged, or holds more than tensors"):
        judge(Noise(), 16, canvases, tmp_path / "bad.pth", 4, 0, "cpu")  # type: ignore[arg-type]
    assert not (tmp_path / "run.txt").exists()


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.path, "run"))
