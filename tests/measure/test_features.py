"""Feature extraction, its cache, and the floors."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure import floors
from belvedere.measure.encoder import Encoder
from belvedere.measure.features import extract, pixels_features
from processes import run_processes

MakeCanvases = Callable[..., Canvases]
MakeEncoder = Callable[..., Encoder]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 23])
def test_features_do_not_depend_on_the_remainder(
    make_canvases: MakeCanvases, make_encoder: MakeEncoder, photos: np.ndarray, count: int
) -> None:
    encoder, canvases = make_encoder(), make_canvases(photos)
    whole = extract(encoder, canvases, batch=8)
    assert whole.shape == (60, 32)
    assert torch.equal(extract(encoder, canvases.subset(range(count)), batch=8), whole[:count])


def test_cache(
    make_canvases: MakeCanvases,
    make_encoder: MakeEncoder,
    photos: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, canvases, folder = make_encoder(), make_canvases(photos), tmp_path / "features"
    exact = extract(encoder, canvases)
    first = extract(encoder, canvases, cache_dir=folder)
    assert torch.equal(first, exact.half().float())
    (file,) = folder.iterdir()
    stamp = file.stat().st_mtime_ns
    # The second time nothing is encoded: an encoder that cannot run gives the same.
    monkeypatch.setattr(encoder.backbone, "forward", None)
    assert torch.equal(extract(encoder, canvases, cache_dir=folder), first)
    assert file.stat().st_mtime_ns == stamp
    extract(make_encoder(reading="avg"), canvases, cache_dir=folder)
    extract(make_encoder(), canvases.subset(range(10)), cache_dir=folder)
    assert len(list(folder.iterdir())) == 3


def test_a_failed_extraction_leaves_no_cache(
    make_canvases: MakeCanvases, make_encoder: MakeEncoder, photos: np.ndarray, tmp_path: Path
) -> None:
    encoder, folder = make_encoder(), tmp_path / "features"
    with torch.no_grad():
        next(encoder.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="features are not finite"):
        extract(encoder, make_canvases(photos), cache_dir=folder)
    assert not folder.exists()


@pytest.mark.parametrize("kept", [0, 5, 40, 200, -1])
def test_a_damaged_cache_is_computed_anew(
    make_canvases: MakeCanvases, make_encoder: MakeEncoder, photos: np.ndarray, tmp_path: Path, kept: int
) -> None:
    """Also one whose header reads well but tells of other images."""
    encoder, canvases, folder = make_encoder(), make_canvases(photos[:8]), tmp_path / "features"
    features = extract(encoder, canvases, cache_dir=folder)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    if kept < 0:
        np.save(file, np.zeros((7, 32), np.float16))
    else:
        file.write_bytes(whole[:kept])
    assert torch.equal(extract(encoder, canvases, cache_dir=folder), features)
    assert file.read_bytes() == whole


def test_a_cache_is_on_the_disk_before_it_has_its_name(
    make_canvases: MakeCanvases,
    make_encoder: MakeEncoder,
    photos: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, canvases = make_encoder(), make_canvases(photos[:8])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"\.npy: cannot be written \(the disk is full\)"):
        extract(encoder, canvases, cache_dir=tmp_path / "features")
    assert list((tmp_path / "features").iterdir()) == []


def _share(rank: int, images: np.ndarray, folder: str) -> dict[str, torch.Tensor]:
    """What one of two processes finds: the first sees the cache of process 0 only, and then none."""
    np.save(f"{folder}/{rank}.npy", images)
    source = find_images(f"{folder}/{rank}.npy")
    canvases = open_canvases(source, 32, cache_dir=Path(folder), workers=1, progress=False)
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, patch=8, width=32, depth=2, heads=2, seed=0)
    encoder = Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)
    exact = extract(encoder, canvases, batch=8, together=True)
    cached = extract(encoder, canvases, batch=8, together=True, cache_dir=Path(folder) / f"features{rank}")
    # Only process 0 has written: what one has not, all must compute again.
    again = extract(encoder, canvases, batch=8, together=True, cache_dir=Path(folder) / f"features{rank}")
    for file in (Path(folder) / f"features{rank}").glob("*.npy"):
        file.write_bytes(b"cut")
    damaged = extract(encoder, canvases, batch=8, together=True, cache_dir=Path(folder) / f"features{rank}")
    return {"exact": exact, "cached": cached, "again": again, "damaged": damaged}


@pytest.mark.parametrize("count", [2, 8, 23])
def test_two_processes_share_the_work(
    make_canvases: MakeCanvases, make_encoder: MakeEncoder, photos: np.ndarray, tmp_path: Path, count: int
) -> None:
    """23 images are three blocks of 8, so one process has two of them and the other one and a spare."""
    exact = extract(make_encoder(), make_canvases(photos[:count]), batch=8)
    for found in run_processes(2, tmp_path, _share, photos[:count], str(tmp_path)):
        assert torch.equal(found["exact"], exact)
        assert torch.equal(found["cached"], exact.half().float())
        assert torch.equal(found["again"], found["cached"])
        assert torch.equal(found["damaged"], found["cached"])
    assert len(list((tmp_path / "features0").iterdir())) == 1
    assert not (tmp_path / "features1").exists()


def test_pixels_are_correlations(make_canvases: MakeCanvases, photos: np.ndarray) -> None:
    features = pixels_features(make_canvases(photos))
    assert features.shape == (60, 3 * 32 * 32)
    cosine = torch.nn.functional.cosine_similarity(features[0], features[30], dim=0).item()
    assert cosine == pytest.approx(np.corrcoef(photos[0].ravel(), photos[30].ravel())[0, 1], abs=1e-5)
    assert pixels_features(make_canvases(photos, "again"), side=8).shape == (60, 192)


def test_untrained_is_the_same_network_with_other_weights(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(reading="avg", seed=5)
    state = torch.random.get_rng_state()
    fresh, again, other = (floors.untrained(encoder, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert fresh.describe() == encoder.describe()
    assert fresh.fingerprint() == again.fingerprint()
    assert len({encoder.fingerprint(), fresh.fingerprint(), other.fingerprint()}) == 3


def test_majority_order() -> None:
    assert floors.majority(np.array([2, 2, 1, 1, 0]), 4).tolist() == [1, 2, 0, 3]
