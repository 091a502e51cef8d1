"""The decode-once cache: what it holds, when it is used, rebuilt and refused."""

from __future__ import annotations

import csv
import os
import pickle
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from belvedere.errors import UserError
from belvedere.images import cachefile, making
from belvedere.images import canvases as canvases_module
from belvedere.images.cachefile import TRAILER, read_index
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.decode import Scale, canvas_size, decode_canvas
from belvedere.images.source import Skipped, Source, find_images
from tiny import FORKS

Picture = NDArray[np.uint8]


def _open(source: Any, cache: Path, side: int = 64, **options: Any) -> Canvases:
    return open_canvases(find_images(source), side, cache_dir=cache, progress=False, **options)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any image that is decoded from here on fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(Source, "read", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(canvases_module, "survey", refuse)
    monkeypatch.setattr(making, "decode_canvas", refuse)


def test_canvases_hold_every_image_scaled(photos: Path, cache: Path) -> None:
    canvases = _open(photos, cache)
    assert (len(canvases), canvases.channels, canvases.skipped) == (6, 3, [])
    assert canvases.original.tolist() == [[90, 120]] * 4 + [[100, 80]] * 2
    assert canvases.sizes.tolist() == [list(canvas_size(h, w, 64)) for h, w in canvases.original.tolist()]
    assert canvases.sizes.dtype == canvases.original.dtype == np.int32
    assert canvases.labels is not None
    assert (canvases.labels.tolist(), canvases.classes) == ([0, 0, 0, 0, 1, 1], ["cats", "dogs"])
    for i, name in enumerate(canvases.names):
        assert np.array_equal(canvases.pixels(i), decode_canvas(photos / name, 3, Scale(), 64)[0])


def test_batch_stacks_one_size_and_lists_several(photos: Path, cache: Path) -> None:
    canvases = _open(photos, cache)
    batch = canvases.batch(torch.tensor([2, 0, 2]))
    assert isinstance(batch, torch.Tensor)
    assert (batch.shape, batch.dtype) == ((3, 64, 85, 3), torch.uint8)
    assert np.array_equal(batch[0].numpy(), canvases.pixels(2))
    mixed = canvases.batch(np.array([0, 5]))
    assert isinstance(mixed, list)
    assert [tuple(item.shape) for item in mixed] == [(64, 85, 3), (80, 64, 3)]
    assert canvases.batch([]) == []
    before = canvases.pixels(5).copy()
    batch.zero_()
    mixed[1].zero_()
    assert np.array_equal(canvases.pixels(5), before)
    with pytest.raises(IndexError):
        canvases.batch([6])


def test_one_and_two_workers_make_the_same_file(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_600_000_000.0)  # which the file notes
    (photos / "broken.jpg").write_bytes(b"no")
    one = _open(photos, tmp_path / "one", workers=1)
    two = _open(photos, tmp_path / "two", workers=2)
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.fingerprint == two.fingerprint
    assert one.skipped == two.skipped == [Skipped("broken.jpg", "not an image in a known format")]


def test_order_holds_over_many_blocks(cache: Path) -> None:
    images = np.arange(200, dtype=np.uint8)[:, None, None].repeat(9, 1).repeat(9, 2)
    canvases = _open(images, cache, workers=3)
    assert [int(canvases.pixels(i)[0, 0, 0]) for i in range(200)] == list(range(200))


def test_second_opening_reads_no_image(photos: Path, cache: Path, request: pytest.FixtureRequest) -> None:
    first = _open(photos, cache)
    batch = first.batch([0, 1])
    request.getfixturevalue("no_decoding")
    second = _open(photos, cache)
    assert second.fingerprint == first.fingerprint
    assert torch.equal(torch.as_tensor(second.batch([0, 1])), torch.as_tensor(batch))
    assert second.statistics() == first.statistics()


def test_labels_are_not_frozen_in_the_cache(photos: Path, cache: Path) -> None:
    _open(photos, cache)
    table = photos.parent / "labels.csv"
    table.write_text("path,label,group\ndogs/5.jpg,a,g1\n")
    again = open_canvases(find_images(photos, labels=table), 64, cache_dir=cache, progress=False)
    assert again.labels is not None
    assert again.labels.tolist() == [-1, -1, -1, -1, -1, 0]
    assert again.groups == ["", "", "", "", "", "g1"]
    assert len(list((cache / "canvases").iterdir())) == 1


def test_changes_build_another_cache(photos: Path, cache: Path) -> None:
    seen = {_open(photos, cache).path}
    target = photos / "cats/0.jpg"
    info = target.stat()
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    touched = _open(photos, cache)
    seen.add(touched.path)
    target.write_bytes((photos / "dogs/5.jpg").read_bytes())
    changed = _open(photos, cache)
    seen.add(changed.path)
    assert np.array_equal(changed.pixels(0), changed.pixels(5))
    seen |= {_open(photos, cache, side=32).path, _open(photos, cache, channels=1).path}
    seen.add(_open(photos, cache, min_side=9).path)
    target.unlink()
    seen.add(_open(photos, cache).path)
    assert len(seen) == 7
    assert changed.fingerprint != touched.fingerprint


def test_fingerprint_follows_the_data_not_the_place(photos: Path, cache: Path) -> None:
    first = _open(photos, cache)
    moved = photos.rename(photos.parent / "moved")
    again = _open(moved, cache)
    assert again.path != first.path
    assert again.fingerprint == first.fingerprint
    (moved / "cats/0.jpg").rename(moved / "cats/9.jpg")
    assert _open(moved, cache).fingerprint != first.fingerprint


@pytest.mark.parametrize("damage", ["cut", "empty", "index", "trailer", "pixels"])
def test_damaged_cache_is_built_again_and_said(
    photos: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _open(photos, cache)
    content = whole.path.read_bytes()
    bad = bytearray(content)
    bad[-TRAILER.size - 40] ^= 1
    damaged = {
        "cut": content[: len(content) // 2],
        "empty": b"",
        "index": bytes(bad),
        "trailer": content[:-1],
        "pixels": bytes([content[0] ^ 1]) + content[1:],
    }[damage]
    whole.path.write_bytes(damaged)
    again = _open(photos, cache)
    pixels = sum(canvas.size for canvas in map(again.pixels, range(len(again))))
    assert again.path.read_bytes()[:pixels] == content[:pixels]
    assert again.fingerprint == whole.fingerprint
    assert caplog.text.count("canvas cache is damaged and is built again") == 1


def test_pixels_are_read_once_after_a_change_of_time(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _open(photos, cache).path
    read = []
    digest = cachefile._digest
    monkeypatch.setattr(cachefile, "_digest", lambda *given: read.append(given) or digest(*given))
    _open(photos, cache)
    assert not read
    path.touch()
    for _ in range(2):
        _open(photos, cache)
    assert len(read) == 1


def _decode_and_count(photos: str, cache: str, start: Any, decoded: Any) -> None:
    """Be a process that opens the photographs and counts those that it decoded itself."""

    def counted(*given: Any) -> Any:
        with decoded.get_lock():
            decoded.value += 1
        return decode_canvas(*given)

    making.decode_canvas = counted
    start.wait()
    assert len(_open(Path(photos), Path(cache))) == 6


@pytest.mark.slow
def test_processes_that_begin_together_decode_once(photos: Path, cache: Path) -> None:
    start, decoded = FORKS.Barrier(3), FORKS.Value("i", 0)
    given = (str(photos), str(cache), start, decoded)
    processes = [FORKS.Process(target=_decode_and_count, args=given) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert decoded.value == 6


def test_full_disk_leaves_nothing_behind(photos: Path, cache: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(UserError, match=r"canvas cache cannot be written to .*\$BELVEDERE_CACHE"):
            _open(photos, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((cache / "canvases").iterdir()) == []
    assert len(_open(photos, cache)) == 6


def test_interrupted_build_leaves_nothing_behind(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "decode_canvas", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _open(photos, cache)
    assert list((cache / "canvases").iterdir()) == []


def test_cache_place_from_the_environment(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "elsewhere"))
    canvases = open_canvases(find_images(photos), 64, progress=False)
    assert canvases.path.parent == tmp_path / "elsewhere" / "canvases"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="canvas cache cannot be written"):
        open_canvases(find_images(photos), 64, progress=False)


def test_mostly_broken_folder_is_refused(photos: Path, cache: Path) -> None:
    for i in range(6):
        (photos / f"broken{i}.jpg").write_bytes(b"" if i else b"text")
    assert len(_open(photos, cache).skipped) == 6  # exactly half is still accepted
    (photos / "folder").symlink_to("cats")
    assert len(_open(photos, cache).skipped) == 7  # a link to a folder is no broken image
    (photos / "gone.jpg").symlink_to("nowhere")
    with pytest.raises(UserError) as caught:
        _open(photos, cache)
    message = str(caught.value)
    assert "7 of 13 images cannot be used" in message
    assert "5 x empty file, as broken1.jpg" in message
    assert "\n" not in message


def test_too_few_images_are_refused(photos: Path, cache: Path) -> None:
    one = photos.parent / "one"
    one.mkdir()
    (one / "a.jpg").write_bytes((photos / "cats/0.jpg").read_bytes())
    with pytest.raises(UserError, match="only 1 usable image; at least 2 are needed"):
        _open(one, cache)
    (one / "a.jpg").write_bytes(b"text")
    with pytest.raises(UserError, match=r"none of 1 images can be read; a.jpg: not an image in a known format"):
        _open(one, cache)
    with pytest.raises(UserError, match="canvas side is 4 px"):
        _open(photos, cache, side=4)


def test_small_images_and_narrow_canvases_are_set_aside(photos: Path, cache: Path, picture: Picture) -> None:
    Image.fromarray(picture[:7, :200]).save(photos / "low.png")
    Image.fromarray(picture[:10, :512]).save(photos / "wide.png")
    reasons = {item.name: item.reason for item in _open(photos, cache, side=64).skipped}
    assert reasons == {
        "low.png": "smaller than 8 px",
        "wide.png": "smaller than 8 px when scaled to 128 px on its long side",
    }
    assert [item.name for item in _open(photos, cache, side=256).skipped] == ["low.png"]


def test_statistics_match_the_pixels(photos: Path, cache: Path) -> None:
    canvases = _open(photos, cache)
    pixels = np.concatenate([canvases.pixels(i).reshape(-1, 3) for i in range(6)]) / 255
    mean, std = canvases.statistics()
    assert mean == pytest.approx(pixels.mean(0))
    assert std == pytest.approx(pixels.std(0))
    ends = np.concatenate([canvases.pixels(i).reshape(-1, 3) for i in (0, 5)]) / 255
    assert canvases.statistics(limit=2)[0] == pytest.approx(ends.mean(0))


def test_statistics_of_a_constant_set_can_be_divided_by(cache: Path) -> None:
    assert _open(np.zeros((3, 16, 16), np.uint8), cache).statistics() == ((0.0,), (1 / 255,))


def test_subset(photos: Path, cache: Path) -> None:
    canvases = _open(photos, cache)
    part = canvases.subset([5, 1])
    assert part.names == ["dogs/5.jpg", "cats/1.jpg"]
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0]
    assert np.array_equal(part.pixels(0), canvases.pixels(5))
    assert part.original.tolist() == [[100, 80], [90, 120]]
    assert len({canvases.fingerprint, part.fingerprint, canvases.subset([1, 5]).fingerprint}) == 3
    assert part.fingerprint == canvases.subset(torch.tensor([5, 1])).fingerprint


def test_pickling_carries_no_pixels(photos: Path, cache: Path) -> None:
    canvases = _open(photos, cache)
    canvases.batch([0])
    packed = pickle.dumps(canvases)
    assert len(packed) < 4000
    assert np.array_equal(pickle.loads(packed).pixels(3), canvases.pixels(3))


def test_skipped_file_is_written_when_empty(photos: Path, cache: Path, tmp_path: Path) -> None:
    _open(photos, cache).write_skipped(tmp_path / "skipped.csv")
    with (tmp_path / "skipped.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["path", "reason"]]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_arrays_keep_their_channels(picture: Picture, cache: Path, channels: int) -> None:
    bands = np.concatenate([picture, picture], axis=-1)[..., :channels]
    images = np.stack([bands[:64, :64], bands[64:128, :64]])
    canvases = _open(images, cache)
    assert canvases.channels == channels
    assert np.array_equal(np.asarray(canvases.batch([0, 1])), images)


def test_real_arrays_with_labels(shared_data: Path, cache: Path) -> None:
    with np.load(shared_data / "pneumoniamnist28.npz") as arrays:
        images, labels = arrays["val_images"], arrays["val_labels"]
    np.savez(cache.parent / "val.npz", x=images, y=labels)
    canvases = _open(cache.parent / "val.npz", cache)
    assert (len(canvases), canvases.channels, canvases.label_origin) == (524, 1, "array")
    assert canvases.labels is not None
    assert np.bincount(canvases.labels).tolist() == [135, 389]
    assert np.array_equal(np.asarray(canvases.batch(range(524)))[..., 0], images)


def test_index_tells_where_each_canvas_lies(photos: Path, cache: Path) -> None:
    index = read_index(_open(photos, cache).path)
    areas = index.sizes.prod(axis=1) * 3
    assert index.offsets().tolist() == [0, *np.cumsum(areas)[:-1].tolist()]
    assert index.rows.tolist() == list(range(6))


def test_channels_that_were_found_need_no_second_cache(photos: Path, tmp_path: Path) -> None:
    source = find_images(photos)
    found = open_canvases(source, 32, "auto", cache_dir=tmp_path, progress=False)
    again = open_canvases(source, 32, found.channels, cache_dir=tmp_path, progress=False)
    assert again.path == found.path
    assert again.fingerprint == found.fingerprint
    other = open_canvases(source, 32, 4 - found.channels, cache_dir=tmp_path, progress=False)
    assert (other.path != found.path, other.channels) == (True, 4 - found.channels)
