"""Feature extraction, its cache, and the floors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from belvedere.errors import UserError
from belvedere.images.canvases import Canvases
from belvedere.measure import floors
from belvedere.measure.encoder import Encoder
from belvedere.measure.features import extract, pixels_features

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
    assert not list(folder.iterdir())


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
