"""The logistic probe: against scikit-learn by hand, with floors, on sets users really have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

from belvedere.evaluate import probe
from belvedere.evaluate.suite import Given, evaluate_encoder
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from belvedere.measure.features import extract

Make = Callable[..., Canvases]
SIX = dict.fromkeys(("astronaut", "coffee", "rocket", "chelsea", "retina", "immunohistochemistry"), 20)


def test_the_probe_is_scikit_learns(make_folder: Make, encoder: Encoder) -> None:
    train, test = make_folder(SIX), make_folder(dict.fromkeys(SIX, 7), "test", first=1)
    (result,) = evaluate_encoder(encoder, Given(train, test), ["logistic"])
    assert set(result.metrics) == {"run", "untrained", "pixels", "majority"}
    assert result.chosen["on"] == "12 of 120 training images, fitted on 108"
    scores = result.chosen["accuracy"]["run"]
    assert len(scores) == 12
    assert scores[f"{result.chosen['C']['run']:g}"] == max(scores.values())
    x, test_x = extract(encoder, train).numpy(), extract(encoder, test).numpy()
    scaler = StandardScaler().fit(x)
    probe = LogisticRegression(C=result.chosen["C"]["run"], max_iter=200).fit(scaler.transform(x), train.labels)
    expected = 100 * probe.score(scaler.transform(test_x), test.labels)
    found = result.metrics["run"]["top1"]
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high
    assert found.low > 100 / 6  # colours of six photographs
    assert result.metrics["majority"]["top1"].value == pytest.approx(100 / 6)
    assert result.metrics["run"]["top5"].value >= found.value


@pytest.mark.parametrize(("most", "threads"), [(probe.ONE_THREAD, 1), (100, 2)])
def test_small_products_are_left_to_one_thread(monkeypatch: pytest.MonkeyPatch, most: int, threads: int) -> None:
    """Of two threads on cores that others keep busy, one waits for the other in every step of the solver."""
    seen: set[int] = set()

    class Watched(LogisticRegression):
        def fit(self, x: object, y: object) -> Watched:
            seen.update(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")
            return super().fit(x, y)

    monkeypatch.setattr(probe, "LogisticRegression", Watched)
    monkeypatch.setattr(probe, "ONE_THREAD", most)
    x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    with threadpool_limits(2, user_api="blas"):
        probe.fit_logistic(1.0, x, np.arange(60) % 3, iterations=5)
    assert seen == {threads}


def test_a_fit_does_not_depend_on_the_number_of_cores() -> None:
    x = np.random.default_rng(0).normal(size=(1500, 192)).astype(np.float32)
    y = x[:, :10].argmax(1)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            found.append(probe.fit_logistic(0.1, x, y, iterations=50).coef_)
    np.testing.assert_array_equal(*found)


def test_floors_can_be_left_out(make_folder: Make, encoder: Encoder) -> None:
    train = make_folder({"coffee": 12, "rocket": 12})
    (result,) = evaluate_encoder(encoder, Given(train, floors=()), ["logistic"])
    assert set(result.metrics) == {"run", "majority"}


@pytest.mark.parametrize(
    "counts", [{"coffee": 2, "rocket": 1}, {"coffee": 1, "rocket": 1}, {"coffee": 3, "rocket": 1, "retina": 1}]
)
def test_tiny_sets_give_a_result(make_folder: Make, encoder: Encoder, counts: dict[str, int]) -> None:
    test = make_folder({"coffee": 2, "chelsea": 1}, "test", first=1)
    (result,) = evaluate_encoder(encoder, Given(make_folder(counts), test), ["logistic"])
    assert "error" not in result.settings
    # An unknown class is never answered, so at most the two coffees can be right.
    assert 0 <= result.metrics["run"]["top1"].value <= 200 / 3 + 1e-6


def test_one_class_is_refused_in_words(encoder: Encoder, tmp_path: Path) -> None:
    images = np.stack([skimage.data.coffee()[i : i + 32, :32] for i in range(9)])
    np.savez(tmp_path / "one.npz", images=images, labels=np.zeros(9, np.int64))
    one = open_canvases(find_images(tmp_path / "one.npz"), 32, cache_dir=tmp_path, workers=1, progress=False)
    (result,) = evaluate_encoder(encoder, Given(one), ["logistic"])
    assert "all training images are of one class" in result.settings["error"]


def test_same_seed_same_numbers(make_folder: Make, encoder: Encoder) -> None:
    train = make_folder({"coffee": 20, "rocket": 20})
    first, second = (evaluate_encoder(encoder, Given(train), ["logistic"])[0] for _ in range(2))
    assert first.metrics == second.metrics
    assert np.isfinite([number.value for numbers in first.metrics.values() for number in numbers.values()]).all()
