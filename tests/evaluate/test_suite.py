"""The evaluation suite and the k-NN protocol on real images, and on the sets users really have."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from belvedere import plugins
from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.evaluate.records import twins_told, write_results
from belvedere.evaluate.suite import Given, evaluate_encoder, read_options
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder

Make = Callable[..., Canvases]
SIX = dict.fromkeys(("astronaut", "coffee", "rocket", "chelsea", "retina", "immunohistochemistry"), 20)


def test_knn_with_floors(make_folder: Make, encoder: Encoder) -> None:
    train, test = make_folder(SIX), make_folder(dict.fromkeys(SIX, 7), "test", first=1)
    (result,) = evaluate_encoder(encoder, Given(train, test), ["knn"])
    assert set(result.metrics) == {"run", "untrained", "pixels", "majority"}
    for metrics in result.metrics.values():
        assert set(metrics) == {"top1", "top5", "balanced"}
        for number in metrics.values():
            assert 0 <= number.low <= number.value <= number.high <= 100
        assert metrics["top1"].value <= metrics["top5"].value
        assert metrics["top1"].value == pytest.approx(metrics["balanced"].value)  # classes are of one size
    assert result.metrics["majority"]["top1"].value == pytest.approx(100 / 6)
    assert result.metrics["majority"]["top5"].value == pytest.approx(500 / 6)
    # Cut-outs of six photographs differ in colour: pixels tell more than nothing.
    assert result.metrics["run"]["top1"].low > 100 / 6
    assert set(result.chosen["k"].values()) <= {10, 20}
    assert result.chosen["on"] == "12 of 120 training images"
    assert result.settings["reading"] == "cls"
    assert result.settings["split"] == "the test images given"


def test_what_the_report_draws(make_folder: Make, encoder: Encoder) -> None:
    train, test = make_folder(SIX), make_folder(SIX, "test", first=1)
    (result,) = evaluate_encoder(encoder, Given(train, test), ["knn"])
    draws = result.draws["run"]
    assert draws["neighbours"].shape == draws["cosines"].shape == (120, 10)
    assert (np.diff(draws["cosines"], axis=1) <= 0).all()
    assert draws["confusion"].sum() == 120
    assert 100 * np.trace(draws["confusion"]) / 120 == pytest.approx(result.metrics["run"]["top1"].value)
    assert ((draws["confidence"] > 0) & (draws["confidence"] <= 1)).all()
    assert "draws" not in result.to_json()


def test_test_images_with_a_twin_in_training_are_named(make_folder: Make, encoder: Encoder) -> None:
    train, test = make_folder({"coffee": 12, "rocket": 12}), make_folder({"coffee": 3, "rocket": 3}, "test", first=0)
    (result,) = evaluate_encoder(encoder, Given(train, test), ["knn"])
    assert result.settings["twins"] == {"images": 6, "pairs": [[name, name] for name in test.names]}
    (first, *_) = test.names
    told = twins_told(result.settings)
    assert told.startswith("6 test images look like twins of a training image, and flatter the numbers if so (")
    assert f"{first} like {first}" in told
    (result,) = evaluate_encoder(
        encoder, Given(train, make_folder({"coffee": 3, "rocket": 3}, "other", first=1)), ["knn"]
    )
    assert result.settings["twins"]["images"] == 0
    assert twins_told(result.settings) == ""


def test_a_test_set_is_carved_class_by_class(make_folder: Make, encoder: Encoder) -> None:
    (result,) = evaluate_encoder(encoder, Given(make_folder({"coffee": 30, "rocket": 60})), ["knn"])
    assert "9 of 90, was held out" in result.settings["split"]
    assert result.draws["run"]["confusion"].sum(1).tolist() == [3, 6]
    assert "top5" not in result.metrics["run"]


def test_same_seed_same_file(make_folder: Make, encoder: Encoder, tmp_path: Path) -> None:
    train = make_folder({"coffee": 30, "rocket": 30})
    texts: list[dict[str, Any]] = []
    for name, seed, cache in (("a", 0, "x"), ("b", 0, "x"), ("c", 0, "y"), ("d", 1, "x")):
        results = evaluate_encoder(encoder, Given(train, seed=seed), ["knn"], cache_dir=tmp_path / cache)
        write_results(results, tmp_path / "out" / f"{name}.json")
        texts.append(json.loads((tmp_path / "out" / f"{name}.json").read_text()))
        assert texts[-1].pop("seconds")["knn"] > 0
    assert texts[0] == texts[1] == texts[2] != texts[3]


def test_classes_are_matched_by_name(make_folder: Make, encoder: Encoder) -> None:
    train = make_folder({"coffee": 20, "retina": 20, "rocket": 20})
    test = make_folder({"rocket": 9, "chelsea": 3}, "test", first=1)  # other order, one class missing, one unknown
    (result,) = evaluate_encoder(encoder, Given(train, test), ["knn"])
    assert result.settings["classes"] == 4
    # sorted names: chelsea, coffee, retina, rocket
    assert result.draws["pixels"]["confusion"].sum(1).tolist() == [3, 0, 0, 9]
    assert result.draws["run"]["confusion"][:, 0].sum() == 0  # nothing can be called an unseen class
    assert result.draws["pixels"]["confusion"][3, 3] > 0


@pytest.mark.parametrize(
    "counts", [{"coffee": 2, "rocket": 1}, {"coffee": 1, "rocket": 1}, {"coffee": 3, "rocket": 1, "retina": 1}]
)
def test_tiny_sets_give_a_result(make_folder: Make, encoder: Encoder, counts: dict[str, int]) -> None:
    test = make_folder({"coffee": 2, "rocket": 1}, "test", first=1)
    (result,) = evaluate_encoder(encoder, Given(make_folder(counts), test), ["knn"])
    assert "error" not in result.settings
    assert 0 <= result.metrics["run"]["top1"].value <= 100
    assert result.chosen["k"]["run"] == 1


LISTS = [
    (name, option)
    for name in plugins.names("protocol")
    for option, field in plugins.load("protocol", name).Options.model_fields.items()
    if isinstance(field.default, tuple) and field.default and not isinstance(field.default[0], str)
]


@pytest.mark.parametrize(("name", "option"), LISTS)
def test_no_number_below_zero_in_a_list(name: str, option: str) -> None:
    assert ("knn", "ks") in LISTS
    with pytest.raises(
        UserError, match=rf"^{name}\.{option}: must be a list in which each is [a-z0-9 ]+ \(given: \S+\)$"
    ):
        read_options(name, plugins.load("protocol", name).Options, {option: [-1]})


def test_grey_images(encoder: Encoder, tmp_path: Path) -> None:
    images = np.stack([skimage.data.camera()[i : i + 32, i : i + 32] for i in range(40)])
    np.savez(tmp_path / "grey.npz", images=images, labels=np.arange(40) % 2)
    grey = open_canvases(find_images(tmp_path / "grey.npz"), 32, cache_dir=tmp_path, workers=1, progress=False)
    with pytest.raises(UserError, match="the images have 1 channels, the encoder was trained on 3"):
        evaluate_encoder(encoder, Given(grey), ["knn"])
    backbone = build_backbone("resnet18", size=(32, 32), channels=1, seed=0)
    (result,) = evaluate_encoder(Encoder(backbone, (32, 32), [0.5], [0.2]), Given(grey), ["knn"])
    assert "error" not in result.settings


def test_without_labels(encoder: Encoder, tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(skimage.data.coffee()[i : i + 32, :32]).save(tmp_path / f"{i}.png")
    flat = open_canvases(find_images(tmp_path), 32, cache_dir=tmp_path / "cache", workers=1, progress=False)
    with pytest.raises(UserError, match=r"the training images have no labels.*folder of its own.*CSV"):
        evaluate_encoder(encoder, Given(flat), ["knn"])
    with pytest.raises(UserError, match="unknown protocol 'kn': did you mean 'knn'"):
        evaluate_encoder(encoder, Given(flat), ["kn"])


def test_a_failed_protocol_does_not_stop_the_others(
    make_folder: Make, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "_user_files", {})
    file = tmp_path / "broken_protocol.py"
    file.write_text(
        "from belvedere.evaluate.contract import Protocol\n"
        "class Broken(Protocol):\n"
        "    def run(self, data):\n"
        "        raise ValueError('no such luck')\n"
    )
    plugins.add_file(file)
    train = make_folder({"coffee": 20, "rocket": 20})
    broken, knn = evaluate_encoder(encoder, Given(train), ["broken_protocol", "knn"])
    assert broken.settings["error"] == "ValueError: no such luck"
    assert broken.metrics == {}
    assert knn.metrics["run"]
    write_results([broken, knn], tmp_path / "r.json")
    assert "no such luck" in (tmp_path / "r.json").read_text()


@pytest.mark.slow
def test_pixels_floor_of_cifar(shared_data: Path, encoder: Encoder, tmp_path: Path) -> None:
    """2000 training and 1000 test images: 20-NN on pixels gives 40.5 % with each image's own mean removed.

    With the mean of the set removed it is 36.9 % (the spec measured 36.6 %); ours is the harder floor.
    """
    for name, count in (("cifar10_train20k", 200), ("cifar10_test10k", 100)):
        with tarfile.open(shared_data / f"{name}.tar.gz") as archive:
            seen: dict[str, int] = {}
            for member in archive:
                label = Path(member.name).parent.name
                if member.isfile() and seen.setdefault(label, 0) < count:
                    seen[label] += 1
                    archive.extract(member, tmp_path, filter="data")
    train, test = (
        open_canvases(find_images(tmp_path / "cifar10" / split), 32, cache_dir=tmp_path, workers=1, progress=False)
        for split in ("train", "test")
    )
    (result,) = evaluate_encoder(encoder, Given(train, test), ["knn"])
    pixels, floor = result.metrics["pixels"]["top1"], result.metrics["untrained"]["top1"]
    assert 37 < pixels.value < 44
    assert 10 < floor.value < pixels.value
    assert result.metrics["majority"]["top1"].value == 10
    assert pixels.low < pixels.value < pixels.high < pixels.value + 5
