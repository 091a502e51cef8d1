"""Finding images: every kind of source, labels, order, and what is refused."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import TensorDataset

from belvedere.errors import UserError
from belvedere.images.decode import decode
from belvedere.images.files import LINKED
from belvedere.images.source import Skipped, find_images

Picture = NDArray[np.uint8]
CATS_AND_DOGS = ["cats/0.jpg", "cats/1.jpg", "cats/2.jpg", "cats/3.jpg", "dogs/4.jpg", "dogs/5.jpg"]


def test_folder_names_order_and_labels(photos: Path) -> None:
    source = find_images(str(photos))
    assert source.names == CATS_AND_DOGS
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert (source.classes, source.label_origin) == (["cats", "dogs"], "first folder level")
    assert source.read(4) == photos / "dogs/4.jpg"
    assert find_images(photos, labels="none").labels is None


def test_finding_opens_no_file_and_imports_no_torch(photos: Path) -> None:
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"")
    assert find_images(photos).names == CATS_AND_DOGS
    code = f"import sys; from belvedere.images.check import check; from belvedere.images.source import find_images; \
find_images({str(photos)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0


def test_every_file_is_asked_for_its_stamp_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million files on a network disk each further question takes minutes."""
    asked, plain = list[str](), os.stat

    def told(path: Any, *given: Any, **more: Any) -> os.stat_result:
        asked.append(os.fspath(path))
        return plain(path, *given, **more)

    monkeypatch.setattr(os, "stat", told)
    source = find_images(photos)
    assert not [path for path in asked if path.endswith(".jpg")]
    source.digest()
    assert sorted(path for path in asked if path.endswith(".jpg")) == [str(photos / name) for name in CATS_AND_DOGS]


def test_one_image_outside_the_folders_means_no_classes(photos: Path) -> None:
    (photos / "5.jpg").write_bytes((photos / "dogs/5.jpg").read_bytes())
    assert find_images(photos).label_origin == "none"
    asked = find_images(photos, labels="folder")
    assert asked.labels is not None
    assert dict(zip(asked.names, asked.labels.tolist(), strict=True))["5.jpg"] == -1


def test_train_and_val_are_splits_not_classes(photos: Path) -> None:
    for split in ("train", "val"):
        for animal in ("cats", "dogs"):
            (photos / split / animal).mkdir(parents=True)
            (photos / split / animal / "0.jpg").write_bytes((photos / "cats/0.jpg").read_bytes())
    for name in CATS_AND_DOGS:
        (photos / name).unlink()
    source = find_images(photos)
    assert (source.classes, source.label_origin) == (["cats", "dogs"], "second folder level")
    assert source.splits == ["train", "train", "val", "val"]


def test_walk_leaves_out_hidden_files_and_names_links_to_folders_and_pipes(photos: Path) -> None:
    (photos / ".hidden").mkdir()
    (photos / "__MACOSX").mkdir()
    for name in (".hidden/a.jpg", "__MACOSX/a.jpg", ".a.jpg", "notes.txt", "a.jpg.part"):
        (photos / name).write_bytes(b"")
    (photos / "loop").symlink_to(photos)
    (photos / "folder.jpg").symlink_to(photos / "cats")
    (photos / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(photos / "pipe.png")
    source = find_images(photos)
    assert source.names == CATS_AND_DOGS
    assert source.skipped == [
        Skipped("folder.jpg", LINKED),
        Skipped("gone.jpg", "dangling link"),
        Skipped("loop", LINKED),
        Skipped("pipe.png", "not a regular file"),
    ]


def test_a_link_to_a_folder_changes_no_data_set_and_is_told_wherever_it_was_asked_for(photos: Path) -> None:
    before = find_images(photos).digest()
    (photos / "birds").symlink_to(photos / "cats")
    (photos / "list.txt").write_text("cats/0.jpg\nbirds\ndogs/4.jpg\n", encoding="utf-8")
    assert find_images(photos).digest() == before
    for source in (photos, f"{photos}/**/*", photos / "list.txt", f"bytes:{photos}"):
        assert find_images(source).skipped == [Skipped("birds", LINKED)]


@pytest.mark.parametrize("pattern", ["{}", "{}/**/*"])
def test_links_to_files_are_read_and_those_out_of_the_folder_told(
    pattern: str, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "cats/inside.jpg").symlink_to(photos / "dogs/4.jpg")
    find_images(pattern.format(photos))
    assert not caplog.messages
    elsewhere = tmp_path / "elsewhere.jpg"
    shutil.copyfile(photos / "cats/0.jpg", elsewhere)
    for name in ("cats/b.jpg", "cats/a\n.jpg"):
        (photos / name).symlink_to(elsewhere)
    found = find_images(pattern.format(photos))
    assert {"cats/a\n.jpg", "cats/b.jpg", "cats/inside.jpg"} < {*found.names}
    assert caplog.messages == [f"{photos}: links that lead out of it are read: 2, such as cats/a\\n.jpg"]
    monkeypatch.setenv("RANK", "1")
    find_images(pattern.format(photos))
    assert len(caplog.messages) == 1


def test_names_that_are_not_utf8(photos: Path) -> None:
    os.rename(photos / "cats/0.jpg", os.fsencode(photos / "cats") + b"/\xff.jpg")
    source = find_images(photos)
    assert len(source) == 6
    assert len(source.digest()) == 32


def test_glob(photos: Path) -> None:
    (photos / "cats/notes.txt").write_text("x")
    (photos / "loop").symlink_to(photos)
    assert find_images(f"{photos}/cats/*").names == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    everything = find_images(f"{photos}/**/*.jpg")
    assert everything.names == CATS_AND_DOGS
    assert everything.root == photos
    assert find_images(f"{photos}/*/[45].jpg").names == CATS_AND_DOGS[4:]


def test_text_list_keeps_its_order(photos: Path) -> None:
    inside, outside = photos / "dogs/4.jpg", photos.parent / "elsewhere.data"
    outside.write_bytes(inside.read_bytes())
    list_file = photos / "list.txt"
    list_file.write_text(f"{inside}\ncats/1.jpg\n\n{outside}\ncats/none.jpg\n", encoding="utf-8")
    source = find_images(list_file)
    assert source.names == ["dogs/4.jpg", "cats/1.jpg", str(outside)]
    assert source.skipped == [Skipped("cats/none.jpg", "No such file or directory")]
    assert source.labels is None  # one image lies outside the list's folders


def test_array_npy_and_npz_are_one_data_set(tmp_path: Path, gray: Picture) -> None:
    images = np.stack([gray, gray[::-1], gray.T])
    np.save(tmp_path / "x.npy", images)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([[7], [-1], [3]]))
    sources = [find_images(images), find_images(tmp_path / "x.npy"), find_images(tmp_path / "x.npz")]
    for source in sources:
        assert source.names == ["0000000", "0000001", "0000002"]
        assert np.array_equal(decode(source.read(2), 1)[..., 0], images[2])
    assert [source.label_origin for source in sources] == ["none", "none", "array"]
    labels = sources[2].labels
    assert labels is not None
    assert (labels.tolist(), sources[2].classes) == ([1, -1, 0], ["3", "7"])


def test_array_digest_follows_the_values(gray: Picture) -> None:
    images = np.stack([gray, gray])
    before = find_images(images).digest()
    assert find_images(images.copy()).digest() == before
    images[1, 5, 5] ^= 1
    assert find_images(images).digest() != before


class Animals:
    """A map-style data set with one broken item."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.classes = ["cat", "dog"]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        if i == 1:
            raise OSError("bad sector")
        return Image.fromarray(self.picture[i * 50 : i * 50 + 64, :64]), i % 2


def test_data_set_of_pillow_images(picture: Picture) -> None:
    source = find_images(Animals(picture))
    assert source.names == ["0000000", "0000002", "0000003"]
    assert source.skipped == [Skipped("0000001", "OSError: bad sector")]
    assert source.labels is not None
    assert (source.labels.tolist(), source.classes, source.label_origin) == ([0, 0, 1], ["cat", "dog"], "data set")
    assert np.array_equal(decode(source.read(1), 3), picture[100:164, :64])
    assert pickle.loads(pickle.dumps(source)).digest() == source.digest()


def test_torch_data_set_is_channels_first(picture: Picture) -> None:
    tensor = torch.from_numpy(picture[:64, :32].copy()).permute(2, 0, 1)
    source = find_images(TensorDataset(torch.stack([tensor, tensor.flip(2)]), torch.tensor([5, 9])))
    assert np.array_equal(decode(source.read(0), 3), picture[:64, :32])
    assert source.labels is not None
    assert (source.labels.tolist(), source.classes) == ([0, 1], ["5", "9"])


def test_data_set_of_dicts(picture: Picture) -> None:
    source = find_images([{"image": picture[:32, :32], "label": 1}, {"image": picture[32:64, :32], "label": 0}])
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0]


def test_csv_labels_splits_and_groups(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = (
        "path,label,split,group\ncats/0.jpg,tabby,train,a\n./dogs/4.jpg,poodle,val,b\ncats/2.jpg,,train,a\nx.jpg,y,,\n"
    )
    (photos / "labels.csv").write_text(table, encoding="utf-8-sig")
    source = find_images(photos, labels=photos / "labels.csv")
    assert source.labels is not None
    assert source.labels.tolist() == [1, -1, -1, -1, 0, -1]
    assert (source.classes, source.label_origin) == (["poodle", "tabby"], "labels.csv")
    assert source.splits == ["train", "", "train", "", "val", ""]
    assert source.groups == ["a", "", "a", "", "b", ""]
    assert "1 of its 4 paths are no image" in caplog.text


def test_numeric_classes_sort_as_numbers(photos: Path) -> None:
    rows = "\n".join(f"{name},{i}" for name, i in zip(CATS_AND_DOGS, (10, 9, 8, 2, 1, 0), strict=True))
    (photos / "labels.csv").write_text(f"path,label\n{rows}\n")
    assert find_images(photos, labels=str(photos / "labels.csv")).classes == ["0", "1", "2", "8", "9", "10"]


def test_a_csv_of_groups_alone(photos: Path) -> None:
    rows = "\n".join(f"{name},clip{i // 2}" for i, name in enumerate(CATS_AND_DOGS))
    (photos / "groups.csv").write_text(f"path,group\n{rows}\n")
    found = find_images(photos, labels=photos / "groups.csv")
    assert found.groups == ["clip0", "clip0", "clip1", "clip1", "clip2", "clip2"]
    assert found.labels is None
    assert found.label_origin == "none"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,class\na,b\n", "needs a header with the columns path and label"),
        ("path,label\nnone.jpg,b\n", "none of its 1 paths is an image"),
        ("path,label\ncats/0.jpg,b\ncats/0.jpg,c\n", "cats/0.jpg is named twice"),
    ],
)
def test_csv_that_does_not_fit_is_refused(photos: Path, table: str, message: str) -> None:
    (photos / "labels.csv").write_text(table)
    with pytest.raises(UserError, match=message):
        find_images(photos, labels=photos / "labels.csv")


def test_missing_csv_is_refused(photos: Path) -> None:
    with pytest.raises(UserError, match="give auto, folder, none or a CSV file"):
        find_images(photos, labels="labels.tsv")


def test_splits_of_one_npz_file_are_read_by_their_names(tmp_path: Path, gray: Picture) -> None:
    images = np.stack([gray[i : i + 28, :28] for i in range(5)])
    file = tmp_path / "medmnist.npz"
    np.savez(file, train_images=images[:3], train_labels=np.array([[1], [0], [1]]), test_images=images[3:])
    train, test = find_images(file / "train"), find_images(f"{file}/test")
    assert train.classes == ["0", "1"]
    assert train.labels is not None
    assert train.labels.tolist() == [1, 0, 1]
    assert test.labels is None
    for i in range(2):
        assert (np.asarray(test.read(i)) == images[3 + i]).all()
    assert train.digest() != test.digest()
    with pytest.raises(UserError, match=r"no array named images or x, only .*; give .*medmnist.npz/train for train_im"):
        find_images(file)
    with pytest.raises(UserError, match="no array named val_images or val_x"):
        find_images(file / "val")


def test_what_cannot_be_a_source_is_refused(tmp_path: Path, photos: Path, picture: Picture) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "export.zip").write_bytes(b"PK")
    np.savez(tmp_path / "other.npz", train=picture[..., 0])
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.jpg").symlink_to("gone")
    for source, message in (
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "empty", "no images found"),
        (broken, "no images found .1 cannot be opened: a.jpg, dangling link"),
        (photos / "cats/0.jpg", "is one single image; give the folder"),
        (tmp_path / "export.zip", "unpack archives first"),
        (f"{photos}/*.gif", "no images found"),
        (tmp_path / "other.npz", "no array named images or x, only train"),
        (tmp_path / "objects.npy", "cannot be read as NumPy arrays"),
        (picture, "one image"),
        (np.zeros((4, 3, 16, 16), np.uint8), "channels first"),
        (np.zeros((4, 16)), "shape is"),
        (np.zeros((4, 16, 16), complex), "complex128"),
        (["a.jpg", "b.jpg"], "an item is a str"),
        (7, "the int is no folder"),
    ):
        with pytest.raises(UserError, match=message):
            find_images(source)
    with pytest.raises(UserError, match="no image lies in a sub-folder"):
        find_images(photos / "cats", labels="folder")
