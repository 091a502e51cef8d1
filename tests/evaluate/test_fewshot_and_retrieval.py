"""Few labels, and retrieval by label: against scikit-learn and by hand, on sets users really have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from belvedere.evaluate.protocols.fewshot import labelled, points
from belvedere.evaluate.protocols.retrieval import found, map_at_r, recall_at
from belvedere.evaluate.suite import Given, evaluate_encoder
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.measure.features import extract

Make = Callable[..., Canvases]
THREE = dict.fromkeys(("astronaut", "coffee", "retina"), 12)


def test_few_labels_are_scikit_learns_mean_over_draws(make_folder: Make, encoder: Encoder) -> None:
    train, test = make_folder(THREE), make_folder(dict.fromkeys(THREE, 6), "test", first=1)
    (result,) = evaluate_encoder(encoder, Given(train, test), ["fewshot"])
    assert set(result.metrics) == {"run", "untrained", "pixels"}
    assert list(result.metrics["run"]) == ["shots1", "shots2", "shots4", "shots8", "shots12"]
    assert result.settings["shots"] == [1, 2, 4, 8, 12]
    x, read = extract(encoder, train).numpy(), extract(encoder, test).numpy()
    scaler = StandardScaler().fit(x)
    scores = []
    for draw in range(5):
        rows = labelled(train.labels, 2, 0, draw)
        probe = LogisticRegression(max_iter=1000).fit(scaler.transform(x)[rows], train.labels[rows])
        scores.append(100 * probe.score(scaler.transform(read), test.labels))
    number = result.metrics["run"]["shots2"]
    assert number.value == pytest.approx(np.mean(scores))
    assert number.low < number.value < number.high
    assert result.metrics["run"]["shots8"].value > 100 / 3
    probe = LogisticRegression(max_iter=1000).fit(scaler.transform(x), train.labels)
    right = probe.predict(scaler.transform(read)) == test.labels
    assert np.array_equal(result.items["run"]["shots12"], right)
    every = result.metrics["run"]["shots12"]
    assert every.value == pytest.approx(100 * right.mean())
    assert every.low < every.value < every.high or right.all()
    assert result.settings["all"] == "shots12 has all 36 labels, 12 to 12 a class"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([16, 16, 16], [1, 2, 4, 8, 16]),
        ([12, 12], [1, 2, 4, 8, 12]),
        ([3, 40, 9], [1, 2, 4, 8, 40]),
        ([1, 1], [1]),
        ([1, 2], [1, 2]),
    ],
)
def test_the_curve_ends_with_all_labels(sizes: list[int], expected: list[int]) -> None:
    assert points(np.array(sizes), (1, 2, 4, 8, 16)) == expected


def test_more_labels_hold_the_fewer_and_small_classes_give_all_they_have() -> None:
    labels = np.array([0] * 20 + [1] * 3 + [2] * 20)
    one, five = labelled(labels, 1, 0, 0), labelled(labels, 5, 0, 0)
    assert np.bincount(labels[one]).tolist() == [1, 1, 1]
    assert np.bincount(labels[five]).tolist() == [5, 3, 5]
    assert set(one) <= set(five)
    assert set(one) != set(labelled(labels, 1, 0, 1))
    assert set(five) != set(labelled(labels, 5, 1, 0))


@pytest.mark.parametrize("protocol", ["fewshot", "retrieval"])
def test_tiny_sets_give_a_result_or_a_sentence(make_folder: Make, encoder: Encoder, protocol: str) -> None:
    test = make_folder({"coffee": 2, "chelsea": 1}, "test", first=1)
    (result,) = evaluate_encoder(encoder, Given(make_folder({"coffee": 2, "rocket": 1}), test), [protocol])
    assert "error" not in result.settings
    assert all(0 <= n.low <= n.value <= n.high <= 100 for n in result.metrics["run"].values())


def test_nothing_to_learn_or_to_find_is_said_in_words(make_folder: Make, encoder: Encoder) -> None:
    train = make_folder({"coffee": 4, "rocket": 4})
    alone = make_folder({"coffee": 1, "rocket": 1}, "alone", first=2)
    (result,) = evaluate_encoder(encoder, Given(train, alone), ["retrieval"])
    assert result.settings["error"].startswith("retrieval: no test image has another one")
    (result,) = evaluate_encoder(encoder, Given(train.subset(np.arange(4)), alone), ["fewshot"])
    assert result.settings["error"].startswith("fewshot: all training images are of one class")


def test_retrieval_leaves_the_query_out_and_counts_who_is_alone(make_folder: Make, encoder: Encoder) -> None:
    test = make_folder({"coffee": 9, "retina": 9, "rocket": 1}, "test", first=1)
    (result,) = evaluate_encoder(encoder, Given(make_folder(THREE), test), ["retrieval"])
    assert (result.settings["queries"], result.settings["gallery"]) == (18, 19)
    assert result.settings["alone_in_their_class"] == 1
    x = extract(encoder, test)
    cosine = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    cosine.fill_diagonal_(-2)
    nearest = test.labels[cosine.argmax(1).numpy()]
    asked = np.bincount(test.labels)[test.labels] > 1
    expected = 100 * (nearest == test.labels)[asked].mean()
    assert result.metrics["run"]["recall1"].value == pytest.approx(expected)
    assert list(result.metrics["run"]) == ["recall1", "recall10", "map_r"]


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5), images=st.integers(6, 40))
def test_recall_grows_with_k_and_perfect_features_find_all(seed: int, classes: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(classes, size=images))
    partners = torch.bincount(labels)[labels] - 1
    asked = (partners > 0).nonzero().squeeze(1)
    if not len(asked):
        return
    x = torch.from_numpy(rng.standard_normal((images, 8)))
    same = found(x, labels, asked, images - 1)
    values = [recall_at(same, k).mean() for k in range(1, images)]
    assert values == sorted(values)
    assert values[-1] == 1
    scores = map_at_r(same, partners[asked])
    assert (scores >= 0).all()
    assert (scores <= recall_at(same, int(partners.max()))).all()
    perfect = found(torch.nn.functional.one_hot(labels, classes), labels, asked, images - 1)
    assert (map_at_r(perfect, partners[asked]) == 1).all()
    assert (recall_at(perfect, 1) == 1).all()
