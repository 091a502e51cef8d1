"""Parquet files and Hugging Face data sets: which column, labels, row groups, and what is read when."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pytest
from archives import jpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from belvedere.errors import UserError
from belvedere.images import tables
from belvedere.images.canvases import open_canvases
from belvedere.images.parallel import ordered_map
from belvedere.images.source import Source, find_images

Picture = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def crops(picture: Picture) -> list[bytes]:
    """Twelve different JPEG files."""
    return [jpeg(picture[30 * i : 30 * i + 32, 100:148]) for i in range(12)]


def write(path: Path, columns: dict[str, Any], rows: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def content(source: Source) -> list[bytes]:
    return [bytes(item) for item in map(source.read, range(len(source))) if isinstance(item, bytes)]


def struct(files: list[bytes]) -> list[dict[str, Any]]:
    """Hugging Face's struct of an image."""
    return [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(files)]


@pytest.mark.parametrize("column", ["image", "img", "jpg"])
@pytest.mark.parametrize("form", [list, struct])
def test_the_image_column_is_found(
    tmp_path: Path, crops: list[bytes], column: str, form: Callable[[list[bytes]], Any]
) -> None:
    table = {"id": list(range(12)), column: form(crops), "label": [i % 3 for i in range(12)]}
    source = find_images(write(tmp_path / "x.parquet", table))
    assert source.names[:2] == ["0000000", "0000001"]
    assert content(source) == crops
    assert source.labels is not None
    assert (source.labels.tolist(), source.classes) == ([0, 1, 2] * 4, ["0", "1", "2"])
    assert source.label_origin == "column label"
    assert open_canvases(source, 32, progress=False).sizes.tolist() == [[32, 48]] * 12


def test_of_several_columns_one_is_named(tmp_path: Path, crops: list[bytes]) -> None:
    table = {"left": crops, "right": crops[::-1], "kind": ["b", "a", None] * 4}
    file = write(tmp_path / "x.parquet", table)
    with pytest.raises(UserError, match=r"may hold images \(left, right, kind\); name one as in .*x.parquet#left"):
        find_images(file)
    right = find_images(f"{file}#right")
    assert content(right) == crops[::-1]
    assert right.labels is None
    left = find_images(f"{file}#left,kind")
    assert content(left) == crops
    assert left.labels is not None
    assert (left.labels.tolist(), left.classes) == ([1, 0, -1] * 4, ["a", "b"])
    assert left.digest() != right.digest()


@pytest.mark.parametrize(
    "given_as",
    ["{}", "{}/*.parquet", "{}/part-{{0..1}}.parquet", "file://{}", "memory://set", "memory://set/*.parquet"],
)
def test_every_way_to_name_tables(tmp_path: Path, crops: list[bytes], given_as: str) -> None:
    store = fsspec.filesystem("memory")
    for i in range(2):
        file = write(tmp_path / f"set/part-{i}.parquet", {"image": crops[6 * i : 6 * i + 6], "label": [i] * 6})
        store.pipe(f"/set/{file.name}", file.read_bytes())
    source = find_images(given_as.format(tmp_path / "set"))
    store.rm("/set", recursive=True)
    if given_as.startswith("memory"):
        with pytest.raises(UserError, match="cannot be opened"):
            source.read(0)
    else:
        assert content(source) == crops
    assert source.labels is not None
    assert source.labels.tolist() == [0] * 6 + [1] * 6
    assert source.names == [f"{i:07d}" for i in range(12)]


def test_class_names_and_splits_as_hugging_face_writes_them(tmp_path: Path, crops: list[bytes]) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for split in ("train", "test"):
        table = {"image": struct(crops), "label": [1, 0] * 6}
        data = datasets.Dataset.from_dict(table, features=features)
        (tmp_path / "data").mkdir(exist_ok=True)
        data.to_parquet(tmp_path / f"data/{split}-00000-of-00001.parquet")
    source = find_images(tmp_path / "data")
    assert source.labels is not None
    assert (source.labels.tolist(), source.classes) == ([1, 0] * 12, ["cat", "dog"])
    assert source.splits == ["test"] * 12 + ["train"] * 12
    assert find_images(tmp_path / "data/train-*.parquet").classes == ["cat", "dog"]


def test_files_as_the_hub_keeps_them(tmp_path: Path, crops: list[bytes]) -> None:
    """Links with the files' names to files that are named by their content."""
    hub = tmp_path / ".cache/huggingface/hub/datasets--me--crops"
    write(hub / "blobs/0a1b2c", {"image": crops})
    (hub / "snapshots/77/data").mkdir(parents=True)
    (hub / "snapshots/77/data/train-00000-of-00001.parquet").symlink_to("../../../blobs/0a1b2c")
    for given_as in (hub / "snapshots", f"{hub}/snapshots/*/data/*.parquet"):
        assert content(find_images(given_as)) == crops


def test_rows_without_an_image_are_set_aside(tmp_path: Path, crops: list[bytes]) -> None:
    files: list[Any] = [*crops[:5], None, b"no picture"]
    canvases = open_canvases(find_images(write(tmp_path / "x.parquet", {"image": files})), 32, progress=False)
    assert canvases.names == [f"{i:07d}" for i in range(5)]
    assert [(item.name, item.reason) for item in canvases.skipped] == [
        ("0000005", "no image in this row"),
        ("0000006", "not an image in a known format"),
    ]


def test_what_is_no_table_of_images_is_refused(tmp_path: Path, crops: list[bytes]) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1" * 30)
    write(tmp_path / "both/a.parquet", {"image": crops})
    write(tmp_path / "both/b.parquet", {"photo": crops})
    for source, message in (
        (tmp_path / "broken.parquet", "broken.parquet: cannot be read as Parquet"),
        (write(tmp_path / "none.parquet", {"a": [1], "b": ["x"]}), r"may hold images \(a, b\)"),
        (tmp_path / "both", "b.parquet has no column image, only photo"),
        (f"{tmp_path}/both/a.parquet#picture", "has no column picture, only image"),
        (f"{write(tmp_path / 'texts.parquet', {'image': ['x']})}#image", "its column image is string"),
        (write(tmp_path / "empty.parquet", {"image": pa.array([], pa.binary())}), "no rows in 1 Parquet files"),
    ):
        with pytest.raises(UserError, match=message) as error:
            find_images(source)
        assert "\n" not in str(error.value)


@settings(max_examples=25)
@given(st.lists(st.lists(st.binary(max_size=40), max_size=9), min_size=1, max_size=4), st.integers(1, 5))
def test_any_rows_in_any_groups_round_trip(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[bytes]], rows: int
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    for i, images in enumerate(files):
        write(folder / f"{i}.parquet", {"image": pa.array(images, pa.binary())}, rows)
    expected = [data for images in files for data in images]
    if not expected:
        with pytest.raises(UserError, match="no rows"):
            find_images(folder)
        return
    source = find_images(folder)
    backwards = [source.read(i) for i in reversed(range(len(source)))]
    assert backwards[::-1] == expected == content(source)


def test_row_groups_are_read_once_by_threads_that_go_through_in_order(
    tmp_path: Path, crops: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_images(write(tmp_path / "x.parquet", {"image": crops * 20}, rows=10))
    reads = []
    read_row_group = parquet.ParquetFile.read_row_group

    def counted(self: Any, place: int, **options: Any) -> Any:
        reads.append(place)
        return read_row_group(self, place, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    # Threads of a pass are never further apart than ordered_map lets them, however the machine favours one of them.
    found = list(ordered_map(source.read, 240, None, "reading", progress=False))
    assert found == crops * 20
    assert sorted(reads) == list(range(24))
    again = pickle.loads(pickle.dumps(source))
    assert again.digest() == source.digest()
    assert again.read(17) == crops[5]


def test_a_large_row_group_is_said(
    tmp_path: Path, crops: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "x.parquet", {"image": crops})
    find_images(file)
    assert not caplog.text
    monkeypatch.setattr(tables, "LARGE_GROUP", 1000)
    find_images(file)
    assert "is read at once" in caplog.text


# --- Hugging Face -----------------------------------------------------------------------------------------------------


@pytest.fixture
def animals(crops: list[bytes]) -> datasets.Dataset:
    """Twelve pictures with named classes, one of them unlabelled."""
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    labels: list[int | None] = [i % 2 for i in range(11)]
    return datasets.Dataset.from_dict({"picture": struct(crops), "kind": [*labels, None]}, features=features)


def refuse_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(Image, "open", fail)


def test_a_hugging_face_data_set_is_not_read_through(
    animals: datasets.Dataset, crops: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse_decoding(patch)
        source = find_images(animals)
        assert content(source) == crops
    assert source.labels is not None
    assert (source.labels.tolist(), source.classes) == ([*([0, 1] * 5), 0, -1], ["cat", "dog"])
    assert source.label_origin == "data set"
    assert animals._fingerprint in source.items.digest()
    assert find_images(animals.select(range(6))).digest() != source.digest()
    assert pickle.loads(pickle.dumps(source)).digest() == source.digest()
    assert len(open_canvases(source, 32, progress=False)) == 12


def test_pictures_that_lie_beside_a_data_set(photos: Path) -> None:
    paths = sorted(map(str, photos.rglob("*.jpg")))
    features = datasets.Features({"image": datasets.Image()})
    source = find_images(datasets.Dataset.from_dict({"image": paths}, features=features))
    assert [source.read(i) for i in range(len(source))] == list(map(Path, paths))


def test_a_row_that_names_no_file_is_set_aside(photos: Path) -> None:
    """Reading a pipe would wait for ever."""
    os.mkfifo(photos / "pipe.png")
    paths = [*sorted(map(str, photos.rglob("*.jpg"))), str(photos / "pipe.png"), str(photos / "cats")]
    features = datasets.Features({"image": datasets.Image()})
    source = find_images(datasets.Dataset.from_dict({"image": paths}, features=features))
    for row in (6, 7):
        with pytest.raises(ValueError, match="not a regular file"):
            source.read(row)
    canvases = open_canvases(source, 32, progress=False)
    assert [item.reason for item in canvases.skipped] == ["not a regular file"] * 2


def test_a_transform_of_the_users_own_is_kept(animals: datasets.Dataset) -> None:
    def flipped(batch: dict[str, Any]) -> dict[str, Any]:
        return {"image": [np.asarray(picture)[:, ::-1] for picture in batch["picture"]]}

    source = find_images(animals.with_transform(flipped))
    found = source.read(3)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found[:, ::-1], np.asarray(animals[3]["picture"]))


def test_a_saved_data_set_and_its_splits(
    animals: datasets.Dataset, crops: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    animals.save_to_disk(tmp_path / "one")
    source = find_images(tmp_path / "one")
    assert content(source) == crops
    assert source.classes == ["cat", "dog"]
    assert find_images(str(tmp_path / "one")).digest() == source.digest()
    splits = datasets.DatasetDict({"train": animals, "test": animals})
    splits.save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match=r"has the splits test, train; give one, as in .*two/test"):
        find_images(tmp_path / "two")
    assert len(find_images(tmp_path / "two/train")) == 12
    with pytest.raises(UserError, match=r"has the splits train, test; give one, as in data\['train'\]"):
        find_images(splits)
    (tmp_path / "one/state.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a saved data set"):
        find_images(tmp_path / "one")


def test_a_stream_is_refused(animals: datasets.Dataset) -> None:
    with pytest.raises(UserError, match="no folder, array or map-style data set"):
        find_images(animals.to_iterable_dataset())


@pytest.mark.parametrize(("module", "extra"), [("pyarrow", "parquet"), ("datasets", "datasets")])
def test_a_missing_package_is_named(
    tmp_path: Path,
    animals: datasets.Dataset,
    crops: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    extra: str,
) -> None:
    write(tmp_path / "x.parquet", {"image": crops})
    animals.save_to_disk(tmp_path / "saved")
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'belvedere\[{extra}\]'"):
        find_images(tmp_path / ("x.parquet" if module == "pyarrow" else "saved"))
