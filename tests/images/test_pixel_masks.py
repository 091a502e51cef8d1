"""Masks from disk: layouts, classes, palettes, what is left out, and each mistake in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from belvedere.errors import UserError
from belvedere.images.masks import IGNORE, MaskOptions, Masks, find_masks, mask_folder, shared_classes, split_rows
from tiny import png_of

IDS = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
COLOURS = [0, 0, 0, 128, 64, 128, 70, 70, 70]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """images/a.jpg and masks/a.png with the ids `IDS`."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.fromarray(IDS).save(tmp_path / "masks" / "a.png")
    return tmp_path


def test_ids_and_names_without_and_with_a_list(root: Path) -> None:
    masks = find_masks(root, ["a.jpg"], np.array([[2, 3]], np.int32))
    assert np.array_equal(masks[0], IDS)
    assert masks.classes == ["0", "1", "2"]
    (root / "classes.txt").write_text("sky\nroad\nold tree\n", encoding="utf-8")
    assert find_masks(root, ["a.jpg"]).classes == ["sky", "road", "old tree"]
    (root / "classes.txt").write_text("0\tsky\n1\troad\n2\ttree\n", encoding="utf-8")
    assert find_masks(root, ["a.jpg"]).classes == ["sky", "road", "tree"]


@pytest.mark.parametrize("void", ["void", "unlabelled(void, ignore)", "Unlabeled"])
def test_a_class_that_says_so_is_left_out(root: Path, void: str) -> None:
    (root / "classes.txt").write_text(f"sky\n{void}\ntree\n", encoding="utf-8")
    masks = find_masks(root, ["a.jpg"])
    assert masks.classes == ["sky", "tree"]
    assert masks[0].tolist() == [[0, IGNORE, 1], [1, IGNORE, IGNORE]]


def test_the_list_of_both_splits_lies_above_them(root: Path) -> None:
    (root.parent / "classes.txt").write_text("sky\nroad\ntree\n", encoding="utf-8")
    try:
        assert find_masks(root, ["a.jpg"]).classes == ["sky", "road", "tree"]
    finally:
        (root.parent / "classes.txt").unlink()


def test_palette_pngs_are_read_by_index(root: Path) -> None:
    image = Image.fromarray(IDS % 3, mode="P")
    image.putpalette(COLOURS)
    image.save(root / "masks" / "a.png")
    assert np.array_equal(find_masks(root, ["a.jpg"])[0], IDS % 3)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 3 2\n%%EndComments\n/Helvetica showpage\n%%EOF\n", "not a PNG"),
        (b"\xff\xd8\xff\xe0", "not a PNG"),
        (b"", "not a PNG"),
        (png_of(60_000, 60_000), "too many pixels"),
        (png_of(0, 1), "not a PNG"),
        (png_of(3, 2).replace(b"IDAT", b"IDAT\1"), "broken"),
    ],
    ids=["eps", "jpeg", "empty", "bomb", "no-height", "broken"],
)
@pytest.mark.parametrize("sizes", [None, np.array([[2, 3]], np.int32)], ids=["read", "header"])
def test_a_file_that_is_no_mask_is_told_in_a_line(
    root: Path, content: bytes, why: str, sizes: NDArray[np.int32] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: ran.append("Ghostscript"))
    file = root / "masks" / "a.png"
    file.write_bytes(content)
    with pytest.raises(UserError) as told:
        find_masks(root, ["a.jpg"], sizes)
    assert str(told.value).startswith(f"{file}: is no mask that can be read (")
    assert why in str(told.value)
    assert "\n" not in str(told.value)
    assert not ran


def test_masks_in_colour(root: Path) -> None:
    table = np.array(COLOURS, np.uint8).reshape(3, 3)
    Image.fromarray(table[IDS % 3]).save(root / "masks" / "a.png")
    with pytest.raises(UserError, match=r"a\.png: a mask has one channel.*palette\.csv with the columns name,r,g,b"):
        find_masks(root, ["a.jpg"])
    (root / "palette.csv").write_text("name,r,g,b\nvoid,0,0,0\nroad,128,64,128\nhouse,70,70,70\n", encoding="utf-8")
    masks = find_masks(root, ["a.jpg"])
    assert masks.classes == ["road", "house"]
    assert masks[0].tolist() == [[IGNORE, 0, 1], [1, 0, IGNORE]]
    (root / "palette.csv").write_text("name,r,g,b\nroad,128,64,128\nroad,70,70,70\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.png: has the colour 0,0,0, which palette\.csv does not name"):
        find_masks(root, ["a.jpg"])[0]
    (root / "palette.csv").write_text("class,colour\nroad,7\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"palette\.csv: a palette has the columns name,r,g,b"):
        find_masks(root, ["a.jpg"])


def test_reduced_zero_label(root: Path) -> None:
    reduced = MaskOptions(reduce_zero_label=True)
    masks = find_masks(root, ["a.jpg"], options=reduced)
    assert masks[0].tolist() == [[IGNORE, 0, 1], [1, 0, IGNORE]]
    assert masks.classes == ["0", "1"]
    (root / "classes.txt").write_text("wall\nbuilding\n", encoding="utf-8")
    masks = find_masks(root, ["a.jpg"], options=reduced)
    assert (masks.classes, masks[0].tolist()) == (["wall", "building"], [[IGNORE, 0, 1], [1, 0, IGNORE]])
    with pytest.raises(UserError, match=r"has the id 2, but classes\.txt names 2 classes"):
        find_masks(root, ["a.jpg"])[0]


def test_mistakes_in_one_sentence(root: Path) -> None:
    with pytest.raises(UserError, match=r"masks/b\.png: 1 of 2 images have no mask"):
        find_masks(root, ["a.jpg", "b.jpg"])
    with pytest.raises(UserError, match=r"a\.png: is 3 x 2, its image 2 x 3; a mask has its image's size"):
        find_masks(root, ["a.jpg"], np.array([[3, 2]], np.int32))
    Image.fromarray(np.array([[0, 700]], np.uint16)).save(root / "masks" / "a.png")
    with pytest.raises(UserError, match=r"a\.png: has the id 700; ids are 0 to 254"):
        find_masks(root, ["a.jpg"])
    (root / "masks" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a\.png: is no mask that can be read"):
        find_masks(root, ["a.jpg"], np.array([[3, 2]], np.int32))
    (root / "classes.txt").write_text("\n".join(map(str, range(300))), encoding="utf-8")
    with pytest.raises(UserError, match=r"classes\.txt: names 300 classes"):
        find_masks(root, ["a.jpg"])


def test_folders_of_masks_and_of_splits(root: Path, tmp_path: Path) -> None:
    assert mask_folder(root) == root / "masks"
    (root / "masks").rename(root / "annotations")  # ADE20K's name
    assert mask_folder(root) == root / "annotations"
    assert mask_folder(root / "images") is None
    with pytest.raises(UserError, match="has no folder of masks beside images/"):
        find_masks(root / "images", ["a.jpg"])
    rows = split_rows(["training/a.jpg", "validation/b.jpg", "training/c.jpg"])
    assert rows is not None
    assert [part.tolist() for part in rows] == [[0, 2], [1]]
    rows = split_rows(["train/a.jpg", "val/b.jpg", "test/c.jpg"])
    assert rows is not None
    assert rows[1].tolist() == [2]
    assert split_rows(["a.jpg", "train.jpg"]) is None
    assert split_rows(["train/a.jpg", "train/b.jpg"]) is None


def test_classes_of_both_splits() -> None:
    def classes(*names: str) -> Masks:
        return Masks([], list(names))

    assert shared_classes(classes("0", "1"), classes("0", "1", "2")) == ["0", "1", "2"]
    assert shared_classes(classes("sky", "road"), classes("sky", "road")) == ["sky", "road"]
    with pytest.raises(UserError, match="other classes: 'road' and 'tree'"):
        shared_classes(classes("sky", "road"), classes("sky", "tree"))
    with pytest.raises(UserError, match="other classes: 2 and 1 of them"):
        shared_classes(classes("sky", "road"), classes("sky"))
