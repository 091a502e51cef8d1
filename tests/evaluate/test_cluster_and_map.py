"""Clusters and the map: against scikit-learn, with and without labels, on sets users really have."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from sklearn.preprocessing import normalize

from belvedere.evaluate.protocols.cluster import matching, silhouettes
from belvedere.evaluate.protocols.map import kept, place
from belvedere.evaluate.suite import Given, evaluate_encoder, suitable
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.measure.features import extract

Make = Callable[..., Canvases]
THREE = dict.fromkeys(("astronaut", "coffee", "retina"), 15)


def unlabelled(canvases: Canvases) -> Canvases:
    return replace(canvases, labels=None, classes=[])


def test_clusters_are_scikit_learns(make_folder: Make, encoder: Encoder) -> None:
    train, test = make_folder(THREE), make_folder(dict.fromkeys(THREE, 8), "test", first=1)
    (result,) = evaluate_encoder(encoder, Given(train, test), ["cluster"])
    assert set(result.metrics) == {"run", "untrained", "pixels"}
    assert result.chosen["k"] == dict.fromkeys(result.metrics, 3)
    x, read = normalize(extract(encoder, train).numpy()), normalize(extract(encoder, test).numpy())
    model = KMeans(3, n_init=10, random_state=0).fit(x)
    found = result.metrics["run"]
    expected = normalized_mutual_info_score(test.labels, model.predict(read))
    assert found["nmi"].value == pytest.approx(100 * expected)
    best = matching(train.labels, model.labels_, 3)
    assert found["matched"].value == pytest.approx(100 * (best[model.predict(read)] == test.labels).mean())
    assert found["matched"].value > 100 / 3
    for subject in result.metrics.values():
        assert all(number.low <= number.value <= number.high for number in subject.values())
    (again,) = evaluate_encoder(encoder, Given(train, test, floors=()), ["cluster"])
    assert json.dumps(again.to_json()["metrics"]["run"]) == json.dumps(result.to_json()["metrics"]["run"])


def test_other_numbers_of_clusters_have_no_accuracy(make_folder: Make, encoder: Encoder) -> None:
    given = Given(make_folder(THREE), options={"cluster": {"k": 5}}, floors=())
    (result,) = evaluate_encoder(encoder, given, ["cluster"])
    assert set(result.metrics["run"]) == {"nmi", "ari", "fmi", "silhouette"}
    assert len(np.unique(result.draws["run"]["clusters"])) <= 5


def test_without_labels_the_clearest_number_of_clusters_is_found(make_folder: Make, encoder: Encoder) -> None:
    images = unlabelled(make_folder({"coffee": 20, "retina": 20}))
    given = Given(images)
    assert {"cluster", "duplicates"} <= set(suitable(given))
    (result,) = evaluate_encoder(encoder, given, ["cluster"])
    assert set(result.metrics["run"]) == {"silhouette"}
    grid = result.chosen["silhouette"]["run"]
    assert sorted(map(int, grid)) == [2, 3, 4, 5, 6]  # of 36 images
    assert grid[str(result.chosen["k"]["run"])] == max(grid.values())
    # Two photographs of different colours: the pixels alone tell that there are two kinds.
    assert result.chosen["k"]["pixels"] == 2


@pytest.mark.parametrize("protocol", ["cluster", "map"])
def test_tiny_sets_give_a_result_or_a_sentence(make_folder: Make, encoder: Encoder, protocol: str) -> None:
    three = make_folder({"coffee": 2, "chelsea": 1}, "test", first=1)
    five = make_folder({"coffee": 3, "rocket": 2})
    for train in (five, unlabelled(five)):
        (result,) = evaluate_encoder(encoder, Given(train, three, floors=()), [protocol])
        assert "error" not in result.settings, result.settings
        assert np.isfinite([number.value for number in result.metrics["run"].values()]).all()


def test_what_cannot_be_is_said_in_words(make_folder: Make, encoder: Encoder) -> None:
    train = make_folder({"coffee": 6, "rocket": 6})
    (result,) = evaluate_encoder(encoder, Given(train, options={"cluster": {"k": 40}}), ["cluster"])
    assert "40 clusters of 11 training images" in result.settings["error"]
    one = train.subset(np.arange(6))
    (result,) = evaluate_encoder(encoder, Given(one), ["cluster"])
    assert "set cluster.k" in result.settings["error"]
    (result,) = evaluate_encoder(encoder, Given(one.subset(np.arange(3)), train), ["map"])
    assert "make no map" in result.settings["error"]


def test_collapsed_features_are_one_cluster_and_no_failure() -> None:
    assert (silhouettes(np.ones((9, 4), np.float32), np.zeros(9, np.int64)) == 0).all()
    x = torch.ones(9, 4)
    points = place(x, "tsne", 0)
    assert np.isfinite(points).all()
    assert kept(x, torch.from_numpy(points), 8).tolist() == [1.0] * 9


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 7), images=st.integers(2, 60))
def test_renamed_clusters_are_matched_back(seed: int, k: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(k, size=images)
    names = rng.permutation(k)
    assert (matching(truth, names[truth], k)[names[truth]] == truth).all()
    noisy = rng.integers(k, size=images)
    best = matching(truth, noisy, k)
    assert sorted(best) == list(range(k))
    assert (best[noisy] == truth).mean() >= (truth == noisy).mean()


def test_the_map_keeps_islands_and_says_how_much(make_folder: Make, encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(3), 30)
    x = torch.from_numpy(10 * np.eye(20)[kinds] + rng.standard_normal((90, 20))).float()
    points = torch.from_numpy(place(x, "tsne", 0))
    assert torch.equal(points, torch.from_numpy(place(x, "tsne", 0)))
    nearest = torch.cdist(points, points).fill_diagonal_(9e9).argmin(1)
    assert (kinds[nearest] == kinds).mean() > 0.98
    assert kept(x, points, 10).mean() > 0.5
    assert kept(x, torch.from_numpy(rng.standard_normal((90, 2))), 10).mean() < 0.2
    (result,) = evaluate_encoder(encoder, Given(make_folder(THREE), options={"map": {"images": 30}}), ["map"])
    assert result.settings["images"] == 30
    assert result.draws["run"]["points"].shape == (30, 2)
    number = result.metrics["run"]["kept"]
    assert 0 <= number.low <= number.value <= number.high <= 100


def test_umap_is_taken_where_it_is_installed_and_refused_in_words_where_not(
    make_folder: Make, encoder: Encoder
) -> None:
    given = Given(make_folder(THREE), options={"map": {"method": "umap"}}, floors=())
    (result,) = evaluate_encoder(encoder, given, ["map"])
    if find_spec("umap") is None:
        assert "belvedere[umap]" in result.settings["error"]
    else:
        assert result.settings["method"] == "umap"
        assert np.isfinite(result.draws["run"]["points"]).all()
