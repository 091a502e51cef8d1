"""The scikit-learn transformer: its features are `embed`'s, and it behaves as scikit-learn's own do.

`check_estimator` runs what its tags allow. Its checks with data do not apply: they feed matrices of floats (samples x
features), where this transformer reads images. Those without data are run one by one.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

import belvedere
from belvedere.errors import UserError
from belvedere.sklearn import EncoderTransformer
from newcomer import TINY
from tiny import tiles

WITHOUT_DATA = (
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_get_feature_names_out_error",
    "check_mixin_order",
    "check_get_params_invariance",
    "check_set_params",
    "check_parameters_default_constructible",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sklearn") / "run"
    return belvedere.pretrain(tiles(24), "simclr", out=out, device="cpu", settings={**TINY, "views.locals": 0})


def transformer(run: Path, **given: Any) -> EncoderTransformer:
    return EncoderTransformer(run=run, device="cpu", **given)


def test_features_are_those_of_embed(run: Path) -> None:
    images = tiles(9, (90, 60))
    found = transformer(run).fit_transform(images)
    assert found.dtype == np.float32
    assert np.array_equal(found, belvedere.embed(run, images, device="cpu"))
    assert np.allclose(transformer(run, batch=4).fit(images).transform(images[:1]), found[:1], atol=1e-5)


def test_paths_in_any_order_and_twice(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiles(4)
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i} ü.png")
    wanted = transformer(run).fit_transform(images)
    order = [2, 0, 2, 3]
    found = transformer(run).fit_transform([Path(f"{i} ü.png") if i else str(tmp_path / "0 ü.png") for i in order])
    assert np.array_equal(found, wanted[order])


def test_names_width_and_pickles(run: Path) -> None:
    fitted = transformer(run, reading="avg").fit(tiles(3))
    names = fitted.get_feature_names_out()
    assert len(names) == fitted.encoder_.dim == fitted.transform(tiles(2)).shape[1]
    assert names[0] == "encodertransformer0"
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.transform(tiles(2)), fitted.transform(tiles(2)))


def test_clone_keeps_the_settings_and_not_the_network(run: Path) -> None:
    fitted = transformer(run, reading="avg", batch=7).fit(tiles(3))
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert not hasattr(copied, "encoder_")
    with pytest.raises(NotFittedError):
        copied.transform(tiles(3))


def test_in_a_pipeline_with_cross_validation_and_search(run: Path) -> None:
    images, labels = tiles(24), np.arange(24) % 4
    pipeline = make_pipeline(transformer(run), LogisticRegression())
    assert pipeline.fit(images, labels).score(images, labels) > 0.5
    assert len(cross_val_score(pipeline, images, labels, cv=2)) == 2
    search = GridSearchCV(pipeline, {"encodertransformer__reading": ["cls", "avg"]}, cv=2).fit(images, labels)
    assert search.best_params_["encodertransformer__reading"] in ("cls", "avg")


@pytest.mark.filterwarnings(f"ignore::{SkipTestWarning.__module__}.{SkipTestWarning.__name__}")
def test_the_checks_of_scikit_learn(run: Path) -> None:
    results = estimator_checks.check_estimator(transformer(run), on_fail="raise")
    assert {result["status"] for result in results} == {"passed"}
    for name in WITHOUT_DATA:
        getattr(estimator_checks, name)("EncoderTransformer", transformer(run))


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "must be uint8"),
        (np.zeros((3, 4), np.uint8), "must be uint8"),
        (np.zeros((2, 32, 32), np.uint8), "1 channels, the run was trained on 3"),
        (np.zeros((0, 32, 32, 3), np.uint8), "there are no images"),
        ([1, 2], "or a list of paths"),
        (["/nowhere/at_all.png"], "at_all.png"),
    ],
)
def test_what_is_no_image_is_refused(run: Path, images: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        transformer(run).fit(images).transform(images)


def test_a_run_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        transformer(tmp_path).fit(tiles(2))
