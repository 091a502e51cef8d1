"""Objects in COCO's form: read, matched to images by name, held to their sizes, and refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from belvedere.errors import UserError
from belvedere.images.annotations import Instance, annotated_rows, annotation_files, find_annotations
from belvedere.images.masks import mask_folder

Content = dict[str, list[dict[str, Any]]]


def content() -> Content:
    return {
        "images": [
            {"id": 5, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 2, "file_name": "more/b.jpg", "width": 20, "height": 10},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"image_id": 5, "category_id": 9, "bbox": [1, 2, 3, 4], "iscrowd": 1, "area": 7.5},
            {"image_id": 5, "category_id": 4, "bbox": [0, 0, 8, 9.5], "segmentation": [[0, 0, 8, 0, 8, 9, 0, 9]]},
            {"image_id": 5, "category_id": 4, "bbox": [0, 0, 0, 9.5]},
        ],
    }


def without_outlines() -> Content:
    found = content()
    found["annotations"][1].pop("segmentation")
    return found


def written(root: Path, found: Content, name: str = "instances.json") -> Path:
    (root / "images").mkdir(exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / name).write_text(json.dumps(found))
    return root


def test_objects_are_those_of_the_image_by_name(tmp_path: Path) -> None:
    found = find_annotations(written(tmp_path, content()), ["more/b.jpg", "a.jpg"], np.array([[10, 20], [30, 40]]))
    assert found.classes == ["cat", "dog"]
    assert found.sizes == [(10, 20), (30, 40)]
    assert [len(objects) for objects in found.objects] == [0, 2]
    assert found.objects[1][0] == Instance(1, (1.0, 2.0, 3.0, 4.0), True, 7.5)
    assert found.objects[1][1].area == 8 * 9.5
    # A group needs no outline: its pixels are those of its box.
    assert found.outlined
    assert found.objects[1][0].mask((30, 40)).sum() == 3 * 4
    assert not find_annotations(written(tmp_path, without_outlines()), ["a.jpg"]).outlined
    assert found.subset([1]).objects == [found.objects[1]]
    assert found.subset([1]).fingerprint() != found.fingerprint() == found.subset([0, 1]).fingerprint()


def test_a_file_a_split(tmp_path: Path) -> None:
    other = content()
    other["images"] = [{"id": 5, "file_name": "a.jpg", "width": 8, "height": 6}]
    written(tmp_path, content(), "instances_train.json")
    written(tmp_path, other, "instances_val.json")
    assert set(annotation_files(tmp_path)) == {"train", "val"}
    found = find_annotations(tmp_path, ["val/a.jpg", "train/a.jpg"])
    assert found.sizes == [(6, 8), (30, 40)]
    # COCO's own folder of annotations is no folder of masks.
    assert mask_folder(tmp_path) is None
    assert annotated_rows(tmp_path, ["test/a.jpg", "val/a.jpg", "a.jpg", "train/a.jpg"]).tolist() == [1, 3]
    written(tmp_path, content())
    assert annotated_rows(tmp_path, ["test/a.jpg", "a.jpg"]).tolist() == [0, 1]


@pytest.mark.parametrize(
    "outline",
    [
        [[1, 1, 5, 1, 5, 4, 1, 4]],
        {"size": [6, 8], "counts": [7, 3, 3, 3, 3, 3, 3, 3, 20]},
        {"size": [6, 8], "counts": "7333333300d0"},
    ],
)
def test_outlines_become_pixels(outline: Any) -> None:
    pytest.importorskip("faster_coco_eval")
    if isinstance(outline, dict) and isinstance(outline["counts"], str):
        from faster_coco_eval.core import mask

        outline = mask.encode(np.asfortranarray(_rectangle().astype(np.uint8)))
    assert np.array_equal(Instance(0, (1, 1, 4, 3), False, 12, outline).mask((6, 8)), _rectangle())


def _rectangle() -> Any:
    found = np.zeros((6, 8), bool)
    found[1:4, 1:5] = True
    return found


def _without(key: str) -> Callable[[Content], object]:
    return lambda found: found.pop(key)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("categories"), "is no file of COCO's form"),
        (lambda found: found["annotations"][0].update(image_id=77), "is no file of COCO's form"),
        (lambda found: found["annotations"][0].update(category_id=1), "is no file of COCO's form"),
        (lambda found: found["annotations"][0].update(bbox=[1, 2, 3]), "is no file of COCO's form"),
        (lambda found: found["images"][0].update(file_name="more/b.jpg"), "two images of one file_name"),
        (lambda found: found["annotations"][1].update(segmentation=[[1, 2, 3, 4]]), "three points or more"),
        (lambda found: found["annotations"][1].update(segmentation=[1, 2, 3, 4, 5, 6]), "three points or more"),
        (lambda found: found["annotations"][1].update(segmentation={"size": [1, 1], "counts": [1]}), "not of size"),
        (lambda found: found["images"][0].update(file_name="c.jpg"), "has no entry for the image a.jpg"),
        (lambda found: found["images"][0].update(width=41), "calls a.jpg 41 x 30, the image is 40 x 30"),
    ],
)
def test_mistakes_are_one_line(spoil: Callable[[Content], object], message: str, tmp_path: Path) -> None:
    found = content()
    spoil(found)
    with pytest.raises(UserError, match=message):
        find_annotations(written(tmp_path, found), ["a.jpg"], np.array([[30, 40]]))


def test_what_is_no_json_is_said(tmp_path: Path) -> None:
    written(tmp_path, content()).joinpath("annotations", "instances.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        find_annotations(tmp_path, ["a.jpg"])


def test_splits_must_agree_on_classes(tmp_path: Path) -> None:
    other = content()
    other["categories"][0]["name"] = "wolf"
    written(tmp_path, content(), "instances_train.json")
    written(tmp_path, other, "instances_val.json")
    with pytest.raises(UserError, match="has other categories"):
        find_annotations(tmp_path, ["train/a.jpg"])
