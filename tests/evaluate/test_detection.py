"""Finding objects: a detector learns shapes, whatever carries it; the same numbers again; refusals and the picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.evaluate.contract import Result
from belvedere.evaluate.protocols.detection import Annotated, Detection, Options, build, corners, find, truth
from belvedere.evaluate.pyramid import Pyramid
from belvedere.evaluate.records import write_results
from belvedere.evaluate.suite import Given, Prepared, prepare
from belvedere.images.annotations import find_annotations
from belvedere.images.canvases import open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from belvedere.report.protocols import draw_results
from shapes import HEIGHT, WIDTH, draw_shapes

pytest.importorskip("torchvision")
pytest.importorskip("faster_coco_eval")

VIT = {"name": "vit_tiny", "patch": 8, "width": 32, "depth": 4, "heads": 2}
FAST = {"epochs": 1, "width": 16, "lr": 1e-3}


def encoder_of(shape: dict[str, Any], seed: int = 0) -> Encoder:
    shape = dict(shape)
    backbone = build_backbone(shape.pop("name"), size=(32, 32), channels=3, seed=seed, **shape)
    return Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)


def prepared(root: Path, encoder: Encoder, floors: tuple[str, ...] = (), **options: Any) -> Prepared:
    canvases = open_canvases(find_images(root / "images", labels="none"), 64, channels=3, progress=False)
    objects = find_annotations(root, canvases.names, canvases.original)
    parts = [np.array([i for i, n in enumerate(canvases.names) if n.startswith(s)]) for s in ("train", "val")]
    (train, test), (there, held) = ([one.subset(rows) for rows in parts] for one in (canvases, objects))
    given = Given(
        train, test, train_objects=there, test_objects=held, options={"detection": FAST | options}, floors=floors
    )
    return prepare(encoder, given, ["detection"], "cpu", None)


def result_of(ready: Prepared) -> Result:
    (result,) = ready.run()
    assert "error" not in result.settings, result.settings["error"]
    return result


@pytest.mark.slow
def test_a_detector_learns_shapes(tmp_path: Path) -> None:
    result = result_of(prepared(draw_shapes(tmp_path), encoder_of(VIT), epochs=10, width=32))
    numbers = result.metrics["run"]
    assert numbers["box_ap50"].value > 60
    assert numbers["mask_ap50"].value > 60
    assert numbers["box_ap"].low <= numbers["box_ap"].value <= numbers["box_ap"].high
    losses = result.settings["loss"]["run"]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        (VIT, {}),
        ({"name": "swin_tiny", "patch": 2, "width": 16, "depth": 7}, {"drop_path": 0.0}),
        ({"name": "resnet18"}, {"frozen": True}),
    ],
)
def test_any_network_with_maps_carries_it(shape: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    ready = prepared(draw_shapes(tmp_path, 4, 2), encoder_of(shape), **settings)
    first, again = result_of(ready), result_of(ready)
    assert set(first.metrics) == {"run"}
    by_class = first.settings["class_ap"]["run"]["box"]
    there = [value for value in by_class.values() if value is not None]
    assert set(by_class) <= set(first.settings["object_classes"])
    assert np.mean(there) == pytest.approx(first.metrics["run"]["box_ap"].value, abs=1e-4)
    assert first.metrics == again.metrics
    assert first.settings["loss"] == again.settings["loss"]


def test_boxes_alone_make_it_faster_r_cnn(tmp_path: Path) -> None:
    result = result_of(prepared(draw_shapes(tmp_path, 4, 2, outlines=False), encoder_of(VIT)))
    assert set(result.metrics["run"]) == {"box_ap", "box_ap50", "box_ap75"}
    assert not result.settings["outlines"]


def test_a_copy_is_trained_and_a_frozen_one_is_not(tmp_path: Path) -> None:
    data = prepared(draw_shapes(tmp_path, 4, 2), encoder_of(VIT)).data
    assert data.train_objects is not None
    scenes = Annotated(data.train, data.encoders["run"], 2.0, "cpu", data.train_objects)
    own = data.encoders["run"].backbone.state_dict()
    before = {name: x.clone() for name, x in own.items()}
    for frozen in (True, False):
        detector, _ = Detection(Options(**FAST, frozen=frozen)).train(scenes, 0, True)
        after = detector.backbone.backbone.state_dict()
        assert all(torch.equal(x, after[name]) for name, x in before.items()) == frozen
        assert all(torch.equal(x, own[name]) for name, x in before.items())


def test_found_boxes_are_in_the_image_s_own_pixels(tmp_path: Path) -> None:
    """A detector that finds what it is told finds it where it is."""
    data = prepared(draw_shapes(tmp_path, 4, 2), encoder_of(VIT)).data
    assert data.train_objects is not None
    scenes = Annotated(data.train, data.encoders["run"], 1.0, "cpu", data.train_objects)
    for i in range(4):
        pixels, target = scenes.example(i, 1.0, mirrored=False)
        height, width = pixels.shape[1:]
        assert (height, width) != (HEIGHT, WIDTH)
        told = {**target, "masks": target["masks"][:, None].float(), "scores": torch.ones(len(target["labels"]))}
        found = find(lambda _, told=told: [told], scenes, i)
        there = truth(data.train_objects, i, outlined=True)
        assert torch.allclose(found.boxes, there.boxes, atol=1e-3)
        assert torch.equal(found.classes, there.classes)
        assert found.masks is not None
        assert (found.masks ^ there.masks).float().mean() < 0.03


def test_an_image_without_objects_and_groups_take_part(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 0]
        content["annotations"][0] |= {"iscrowd": 1, "segmentation": None}

    result = result_of(prepared(spoiled(draw_shapes(tmp_path, 4, 2), change), encoder_of(VIT), batch=1))
    assert "mask_ap" in result.metrics["run"]
    # Sizes that no object has are told as missing, and the file can be written.
    assert result.settings["further"]["run"]["box_ap_large"] is None
    write_results([result], tmp_path / "evaluation.json")


@pytest.mark.parametrize(("patch", "size"), [(14, (42, 56)), (8, (40, 56)), (2, (20, 28))])
def test_every_patch_s_points_lie_on_the_image(patch: int, size: tuple[int, int]) -> None:
    """Anchors' centres are those of the cells they belong to, and a box is read where it is."""
    shape = VIT | {"patch": patch}
    backbone = build_backbone(
        "vit_tiny", size=size, channels=3, seed=0, **{k: v for k, v in shape.items() if k != "name"}
    )
    pyramid = Pyramid(backbone, 8, (0.25, 0.5, 0.75, 1.0))
    detector = build(pyramid, 2, outlined=True).eval()
    maps = list(pyramid(torch.zeros(1, 3, *size)).values())
    images = SimpleNamespace(tensors=torch.zeros(1, 3, *size), image_sizes=[size])
    (anchors,) = detector.rpn.anchor_generator(images, maps)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    start = 0
    for level, stride in zip(maps, pyramid.strides, strict=True):
        count = 3 * level.shape[2] * level.shape[3]
        last = centres[start + count - 1]
        assert last.tolist() == pytest.approx(
            [(side - 1) * stride for side in (level.shape[3], level.shape[2])], abs=0.01
        )
        start += count
    assert [1 / scale for scale in detector.roi_heads.box_roi_pool.scales] == pytest.approx(pyramid.strides)


def test_targets_follow_size_and_mirror(tmp_path: Path) -> None:
    data = prepared(draw_shapes(tmp_path, 4, 2), encoder_of(VIT)).data
    assert data.train_objects is not None
    scenes = Annotated(data.train, data.encoders["run"], 2.0, "cpu", data.train_objects)
    for i in range(4):
        straight, target = scenes.example(i, 1.25, mirrored=False)
        mirrored, other = scenes.example(i, 1.25, mirrored=True)
        assert torch.equal(straight.flip(-1), mirrored)
        height, width = straight.shape[1:]
        expected = corners(data.train_objects.objects[i]) * torch.tensor([width / WIDTH, height / HEIGHT] * 2)
        assert torch.allclose(target["boxes"], expected)
        for boxes, masks in ((target["boxes"], target["masks"]), (other["boxes"], other["masks"])):
            for (left, top, right, bottom), mask in zip(boxes.tolist(), masks, strict=True):
                rows, columns = mask.nonzero().T
                ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert np.abs(np.array(ends) - np.array([left, top, right, bottom])).max() <= 1.5
    kept, target = replace(scenes, mirrored=False).example(0, 1.25, mirrored=True)
    assert torch.equal(kept, scenes.example(0, 1.25, mirrored=False)[0])
    assert torch.equal(target["boxes"], scenes.example(0, 1.25, mirrored=False)[1]["boxes"])


def test_levels_of_one_grid_and_of_stages() -> None:
    pixels = torch.zeros(1, 3, 48, 64)
    one = Pyramid(encoder_of(VIT).backbone, 16, (0.25, 0.5, 0.75, 1.0))
    assert [tuple(level.shape[1:]) for level in one(pixels).values()] == [
        (16, 24, 32),
        (16, 12, 16),
        (16, 6, 8),
        (16, 3, 4),
    ]
    assert one.strides == [2, 4, 8, 16]
    assert one.levels == [0, 1, 2, 3]
    stages = Pyramid(encoder_of({"name": "resnet18"}).backbone, 16, (0.25, 0.5, 0.75, 1.0))
    found = [level.shape[2] for level in stages(torch.zeros(1, 3, 64, 64)).values()]
    assert [64 // height for height in found] == stages.strides == [4, 8, 16, 32]


def spoiled(root: Path, change: Any) -> Path:
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return root


def test_refusals(tmp_path: Path) -> None:
    empty = spoiled(draw_shapes(tmp_path / "a", 4, 2), lambda content: content["annotations"].clear())
    (result,) = prepared(empty, encoder_of(VIT)).run()
    assert result.settings["error"] == "the training images have not a single object"
    canvases = open_canvases(find_images(tmp_path / "a" / "images", labels="none"), 64, channels=3, progress=False)
    with pytest.raises(UserError, match=r"--protocol detection: needs boxes of objects"):
        prepare(encoder_of(VIT), Given(canvases), ["detection"], "cpu", None)
    (result,) = prepared(draw_shapes(tmp_path / "b", 4, 2), encoder_of(VIT), lr=1e20, epochs=4).run()
    assert "give a smaller detection.lr" in result.settings["error"]


def test_the_picture(tmp_path: Path) -> None:
    ready = prepared(draw_shapes(tmp_path, 4, 3), encoder_of(VIT), floors=("untrained",))
    out = tmp_path / "out"
    draw_results(out, ready.run(), ready.data)
    (drawn,) = json.loads((out / "pictures.json").read_text())["detection"]
    assert "untrained" in drawn["caption"]
    assert (out / "detection.webp").stat().st_size > 2000
    assert (out / "detection.csv").read_text().startswith("image,class,score,left,top,width,height")
