"""Tar shards: every way to name them, labels, order, hostile archives, the kept index, and remote file systems."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import pickle
import string
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
from archives import jpeg, special, tar_bytes, write_tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from belvedere.errors import UserError
from belvedere.images import shards
from belvedere.images.canvases import open_canvases
from belvedere.images.check import check
from belvedere.images.cutting import Cutting
from belvedere.images.shards import index_shard
from belvedere.images.source import Skipped, Source, find_images
from belvedere.images.tiles import cut

Picture = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """The in-memory file system, empty before and after."""
    store = fsspec.filesystem("memory")

    def clear() -> None:
        store.store.clear()
        store.pseudo_dirs[:] = [""]

    clear()
    yield store
    clear()


@pytest.fixture
def crops(picture: Picture) -> list[bytes]:
    """Eight different JPEG files."""
    return [jpeg(picture[40 * i : 40 * i + 32, 100:148]) for i in range(8)]


@pytest.fixture
def folder(tmp_path: Path, crops: list[bytes]) -> Path:
    """Two shards of three images each, with labels as WebDataset has them."""
    for shard in range(2):
        members = {}
        for i in range(3 * shard, 3 * shard + 3):
            members |= {f"{i:06}.jpg": crops[i], f"{i:06}.cls": b"%d" % (i % 2)}
        write_tar(tmp_path / f"shards/part-{shard:03}.tar", members)
    return tmp_path / "shards"


def content(source: Source) -> list[bytes]:
    found = [source.read(i) for i in range(len(source))]
    assert all(isinstance(item, bytes) for item in found)
    return [bytes(item) for item in found if isinstance(item, bytes)]


SIX = [f"{i:06}.jpg" for i in range(6)]


@pytest.mark.parametrize("given_as", ["{}", "{}/*.tar", "{}/part-{{000..001}}.tar", "file://{}", "file://{}/*.tar"])
def test_every_way_to_name_local_shards(folder: Path, crops: list[bytes], given_as: str) -> None:
    source = find_images(given_as.format(folder))
    assert source.names == SIX
    assert content(source) == crops[:6]
    assert source.labels is not None
    assert (source.labels.tolist(), source.classes) == ([0, 1] * 3, ["0", "1"])
    assert source.label_origin == "shards"
    assert find_images(folder / "part-001.tar").names == SIX[3:]
    assert find_images(f"{folder}/part-{{001,000}}.tar").names == SIX


@pytest.mark.parametrize(
    "given_as",
    ["memory://set", "memory://set/*.tar", "memory://set/part-{000..001}.tar", "memory://set/part-{000,001}.tar"],
)
def test_every_way_to_name_remote_shards(
    folder: Path, crops: list[bytes], memory: fsspec.AbstractFileSystem, given_as: str
) -> None:
    memory.put(str(folder), "/set", recursive=True)
    source = find_images(given_as)
    assert source.names == SIX
    assert content(source) == crops[:6]
    assert source.labels is not None
    assert find_images("memory://set/part-001.tar").names == SIX[3:]
    canvases = open_canvases(source, 32, progress=False)
    assert canvases.fingerprint == open_canvases(find_images(folder), 32, progress=False).fingerprint


def test_a_folder_of_plain_images_behind_a_url(photos: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.put(str(photos), "/photos", recursive=True)
    memory.pipe("/photos/.hidden/a.jpg", b"")
    remote, local = find_images("memory://photos"), find_images(photos)
    assert (remote.names, remote.classes) == (local.names, local.classes)
    assert open_canvases(remote, 64, progress=False).fingerprint == open_canvases(local, 64, progress=False).fingerprint
    assert find_images("memory://photos/*/[45].jpg").names == ["dogs/4.jpg", "dogs/5.jpg"]
    before = remote.digest()
    memory.pipe("/photos/cats/0.jpg", b"other")
    assert find_images("memory://photos").digest() != before


def test_labels_by_webdatasets_conventions(tmp_path: Path, crops: list[bytes]) -> None:
    members = {
        "a/1.left.jpg": crops[0],
        "a/1.right.JPG": crops[1],
        "a/1.cls": b"Dachs\n",
        "a/1.json": b'{"label": "the cls member is asked first"}',
        "a/1.txt": b"a caption",
        "b/1.jpg": crops[2],
        "b/1.json": json.dumps({"label": "Öre", "width": 48}).encode(),
        "b/2.jpg": crops[3],
        "b/._2.jpg": b"what a Mac leaves",
        "__MACOSX/b/2.jpg": b"and this",
    }
    source = find_images(write_tar(tmp_path / "x.tar", members))
    assert source.names == ["a/1.left.jpg", "a/1.right.JPG", "b/1.jpg", "b/2.jpg"]
    assert source.labels is not None
    assert (source.labels.tolist(), source.classes) == ([0, 0, 1, -1], ["Dachs", "Öre"])
    assert not source.skipped
    by_folder = find_images(tmp_path / "x.tar", labels="folder")
    assert by_folder.classes == ["a", "b"]
    assert find_images(tmp_path / "x.tar", labels="none").labels is None
    (tmp_path / "labels.csv").write_text("path,label\nb/2.jpg,x\n")
    assert find_images(tmp_path / "x.tar", labels=tmp_path / "labels.csv").classes == ["x"]


def test_labels_that_cannot_be_read_are_counted(
    tmp_path: Path, crops: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    members = {"1.jpg": crops[0], "1.json": b"{", "2.jpg": crops[1], "2.cls": b"\xff", "3.jpg": crops[2], "3.cls": b"7"}
    source = find_images(write_tar(tmp_path / "x.tar", members))
    assert source.labels is not None
    assert source.labels.tolist() == [-1, -1, 0]
    assert "2 labels cannot be read, the first is 1.json" in caplog.text


def test_a_tar_file_of_a_folder_is_that_folder(photos: Path, tmp_path: Path) -> None:
    """The same names, labels and canvases, whether or not the folder's own name is in the archive."""
    files = {path.relative_to(photos).as_posix(): path.read_bytes() for path in sorted(photos.rglob("*.jpg"))}
    local = find_images(photos)
    for ahead in ("", "./", "photos/", "/home/me/photos/"):
        source = find_images(write_tar(tmp_path / "x.tar", {ahead + name: data for name, data in files.items()}))
        assert (source.names, source.classes, source.label_origin) == (local.names, local.classes, local.label_origin)
        assert source.labels is not None
        assert source.labels.tolist() == [0, 0, 0, 0, 1, 1]
        canvases = open_canvases(source, 64, progress=False)
        assert canvases.fingerprint == open_canvases(local, 64, progress=False).fingerprint


def test_splits_by_folders_in_shards_and_by_the_names_of_shards(tmp_path: Path, crops: list[bytes]) -> None:
    inside = {"set/train/a/1.jpg": crops[0], "set/val/a/1.jpg": crops[1], "set/val/b/2.jpg": crops[2]}
    source = find_images(write_tar(tmp_path / "inside/x.tar", inside))
    assert (source.splits, source.classes) == (["train", "val", "val"], ["a", "b"])
    for name, crop in (("train-000", crops[0]), ("train-001", crops[1]), ("val-000", crops[2])):
        write_tar(tmp_path / f"named/{name}.tar", {f"{name}.jpg": crop})
    assert find_images(tmp_path / "named").splits == ["train", "train", "val"]
    write_tar(tmp_path / "named/more.tar", {"x.jpg": crops[3]})
    assert find_images(tmp_path / "named").splits is None


def test_one_name_in_two_shards_is_two_images(tmp_path: Path, crops: list[bytes]) -> None:
    for shard in range(2):
        members = {"cats/1.jpg": crops[2 * shard], "dogs/1.jpg": crops[2 * shard + 1]}
        write_tar(tmp_path / f"s/{shard}.tar", members)
    source = find_images(tmp_path / "s")
    assert source.names == ["0/cats/1.jpg", "0/dogs/1.jpg", "1/cats/1.jpg", "1/dogs/1.jpg"]
    assert content(source) == crops[:4]
    assert source.classes == ["cats", "dogs"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert find_images(tmp_path / "s", labels="folder").classes == ["cats", "dogs"]


def test_a_later_member_of_the_same_name_replaces_the_earlier(tmp_path: Path, crops: list[bytes]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, crop in (("a.jpg", crops[0]), ("b.jpg", crops[1]), ("a.jpg", crops[2])):
            info = tarfile.TarInfo(name)
            info.size = len(crop)
            tar.addfile(info, io.BytesIO(crop))
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    source = find_images(tmp_path / "x.tar")
    assert source.names == ["b.jpg", "a.jpg"]
    assert content(source) == [crops[1], crops[2]]
    assert source.skipped == [Skipped("a.jpg", "replaced by a later member of the same name")]


# --- archives that are hostile, damaged, or not what they seem --------------------------------------------------------


def test_hostile_members_are_set_aside_and_nothing_is_written(
    tmp_path: Path, crops: list[bytes], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    members: dict[str, bytes | tarfile.TarInfo] = {
        "good.jpg": crops[0],
        "../outside.jpg": crops[1],
        "a/../../../outside.jpg": crops[1],
        "/absolute.jpg": crops[2],
        "link.jpg": special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        "hard.jpg": special("hard.jpg", tarfile.LNKTYPE, "good.jpg"),
        "device.jpg": special("device.jpg", tarfile.CHRTYPE),
        "pipe.jpg": special("pipe.jpg", tarfile.FIFOTYPE),
        "folder.jpg": special("folder.jpg", tarfile.DIRTYPE),
        "<script>alert(1)</script>\n.jpg": crops[3],
        "x.cls": special("x.cls", tarfile.SYMTYPE, "/etc/passwd"),
        **dict(zip(SIX, crops, strict=False)),
    }
    source = find_images(write_tar(tmp_path / "in/x.tar", members))
    assert source.names == ["good.jpg", "absolute.jpg", "<script>alert(1)</script>\n.jpg", *SIX]
    assert content(source) == [crops[0], crops[2], crops[3], *crops[:6]]
    assert source.skipped == [
        Skipped("../outside.jpg", "its name leaves the archive"),
        Skipped("a/../../../outside.jpg", "its name leaves the archive"),
        Skipped("link.jpg", "a link inside a tar file"),
        Skipped("hard.jpg", "a link inside a tar file"),
        Skipped("device.jpg", "not a regular file"),
        Skipped("pipe.jpg", "not a regular file"),
        Skipped("folder.jpg", "a folder named like an image"),
    ]
    open_canvases(source, 32, progress=False)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and cache not in path.parents]
    assert outside == [tmp_path / "in/x.tar"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 15000))
def test_a_shard_cut_anywhere_keeps_what_lies_before(cut: int, crops: list[bytes]) -> None:
    whole = tar_bytes({f"{i}.jpg": crop for i, crop in enumerate(crops)})
    data = whole[: max(1, len(whole) - cut)]
    index = index_shard(io.BytesIO(data), "x.tar")
    kept = [data[start : start + size] for start, size in zip(index.offsets, index.sizes, strict=True)]
    assert kept == crops[: len(kept)]
    assert index.names == [f"{i}.jpg" for i in range(len(kept))]
    ends = [start + size for start, size in zip(index.offsets, index.sizes, strict=True)]
    if len(kept) == 8 or len(data) <= -(-(ends[-1] if ends else 0) // 512) * 512:  # cut between two members
        assert index.skipped == []
    else:
        assert len(index.skipped) == 1
        assert index.skipped[0][1].startswith(("cut off", "damaged at byte", "no tar file"))


def test_a_cut_shard_is_named_and_the_others_are_used(folder: Path, crops: list[bytes]) -> None:
    last = folder / "part-001.tar"
    data = last.read_bytes()
    last.write_bytes(data[: data.index(crops[4]) + 100])
    (folder / "part-002.tar").write_bytes(b"no archive at all" * 100)
    (folder / "part-003.tar").write_bytes(b"")
    source = find_images(folder)
    assert source.names == SIX[:4]
    assert [item.name for item in source.skipped] == ["000004.jpg", "part-002.tar", "part-003.tar"]
    assert [item.reason.partition(" (")[0] for item in source.skipped] == [
        "cut off: the shard ends inside it",
        "no tar file",
        "no tar file",
    ]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_survived(data: st.DataObject, crops: list[bytes]) -> None:
    """No header makes the index hang, fail, or point outside of the file."""
    kind = data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]))
    longest = 90 if kind == tarfile.USTAR_FORMAT else 150
    damaged = bytearray(tar_bytes({f"{'é' * (longest // 2)}{i}.jpg": crops[i][:600] for i in range(3)}, kind))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1) | st.integers(0, 511))
        damaged[at] = data.draw(st.integers(0, 255))
    start = data.draw(st.sampled_from([0, 512, 1024]))
    if data.draw(st.booleans()):
        # A header whose checksum is right whatever it claims.
        header = bytearray(damaged[start : start + 512])
        header[124:136] = data.draw(st.sampled_from([b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0"]))
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        damaged[start : start + 512] = header
    try:
        index = index_shard(io.BytesIO(bytes(damaged)), "x.tar")
    except UserError:  # its first bytes happen to be those of a compressed file
        assert any(damaged.startswith(magic) for magic in shards.COMPRESSIONS)
        return
    for offset, size in zip(index.offsets, index.sizes, strict=True):
        assert 0 <= offset <= offset + size <= len(damaged)


def test_a_chain_of_extended_headers_is_survived() -> None:
    """Each asks for the next, and no image comes: tarfile recurses once a header."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 0
    index = index_shard(io.BytesIO(info.tobuf() * 20000), "x.tar")
    assert index.names == []
    assert len(index.skipped) == 1


def test_compressed_archives_are_refused(tmp_path: Path, crops: list[bytes], photos: Path) -> None:
    plain = tar_bytes({"a.jpg": crops[0], "b.jpg": crops[1]})
    packed = tmp_path / "only"
    packed.mkdir()
    (packed / "x.tar.gz").write_bytes(gzip.compress(plain))
    (tmp_path / "lying.tar").write_bytes(gzip.compress(plain))
    for source in (packed, packed / "x.tar.gz", tmp_path / "lying.tar", f"{packed}/*.gz", f"file://{packed}"):
        with pytest.raises(UserError, match=r"compressed.*random access; decompress it to a plain .tar") as error:
            find_images(source)
        assert "\n" not in str(error.value)
    # Beside images, an archive is what it always was: nothing.
    (photos / "backup.tar.gz").write_bytes(b"")
    (photos / "backup.tar").write_bytes(b"")
    (photos / "gone.tar").symlink_to("nowhere")
    assert len(find_images(photos)) == 6
    assert not find_images(photos).skipped


def test_what_cannot_be_shards_is_refused(tmp_path: Path, folder: Path, crops: list[bytes]) -> None:
    write_tar(tmp_path / "texts.tar", {"a.txt": b"x"})
    (folder / "x.parquet").write_bytes(b"")
    for source, message in (
        (tmp_path / "texts.tar", "no images in 1 tar files"),
        (f"{folder}/part-001.tar#jpg", "part-001.tar#jpg: #jpg names columns of Parquet files, and there are none"),
        (f"{folder}/part-{{000..004}}.tar", "3 of 5 files are missing, the first is .*part-002.tar"),
        (folder, r"holds .tar and .parquet files; say which, as in .*/\*.tar"),
        ("memory://nothing/here.tar", "no such file or folder"),
        ("memory://nothing/{0..2}.tar", "3 of 3 files are missing"),
        ("memory://nothing", "no such file|no images found"),
        ("nonsense://a/b.tar", "nonsense"),
    ):
        with pytest.raises(UserError, match=message) as error:
            find_images(source)
        assert "\n" not in str(error.value)


# --- round trip -------------------------------------------------------------------------------------------------------

SAFE = st.text(st.characters(codec="utf-8", exclude_characters="/.\0"), min_size=1, max_size=40).filter(
    lambda text: text != "__MACOSX"
)
NAMES = st.builds(lambda folders, base: "/".join([*folders, f"{base}.png"]), st.lists(SAFE, max_size=3), SAFE)


@settings(max_examples=100)
@given(
    images=st.dictionaries(NAMES, st.tuples(st.binary(max_size=1500), st.none() | st.sampled_from(string.digits))),
    kind=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_any_archive_round_trips(images: dict[str, tuple[bytes, str | None]], kind: int) -> None:
    members = {}
    for name, (data, label) in images.items():
        members[name] = data
        if label is not None:
            members[name.removesuffix(".png") + ".cls"] = label.encode()
    file = io.BytesIO(tar_bytes(members, kind))
    index = index_shard(file, "x.tar")
    assert not index.skipped
    assert index.names == list(images)
    assert index.labels == [label for _, label in images.values()]
    whole = file.getvalue()
    read = [whole[start : start + size] for start, size in zip(index.offsets, index.sizes, strict=True)]
    assert read == [data for data, _ in images.values()]


def test_threads_and_other_processes_read_the_same(folder: Path, crops: list[bytes]) -> None:
    source = find_images(folder)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(source.read, [i % 6 for i in range(600)]))
    assert found == [crops[i % 6] for i in range(600)]
    again = pickle.loads(pickle.dumps(source))
    assert content(again) == crops[:6]
    assert again.digest() == source.digest()


def test_the_check_report_covers_shards(folder: Path) -> None:
    report = check(folder, progress=False)
    assert report.count == 6
    assert report.classes == {"0": 3, "1": 3}
    assert report.formats == {"JPEG": 6}


# --- the kept index ---------------------------------------------------------------------------------------------------


def refuse_indexing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the shard was read again")

    monkeypatch.setattr(shards, "index_shard", fail)


def test_a_second_start_reads_no_shard(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_images(folder)
    assert len(list((cache / "shards").iterdir())) == 2
    with monkeypatch.context() as patch:
        refuse_indexing(patch)
        second = find_images(folder)
    assert (second.names, second.digest(), second.skipped) == (first.names, first.digest(), first.skipped)


def test_a_changed_shard_is_indexed_again(folder: Path, crops: list[bytes]) -> None:
    before = find_images(folder)
    write_tar(folder / "part-000.tar", {"new.jpg": crops[7]})
    after = find_images(folder)
    assert after.names == ["new.jpg", *SIX[3:]]
    assert after.digest() != before.digest()


@pytest.mark.parametrize("damage", [b"", b"half", b"\0" * 4000])
def test_a_damaged_index_is_made_again(
    folder: Path, cache: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    names = find_images(folder).names
    for path in (cache / "shards").iterdir():
        path.write_bytes(damage)
    assert find_images(folder).names == names
    assert caplog.text.count("is damaged and is made again") == 2
    caplog.clear()
    assert find_images(folder).names == names
    assert not caplog.text


def test_an_index_that_cannot_be_kept_stops_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path / "file"))
    assert find_images(folder).names == SIX
    assert "is not kept, and is made again next time" in caplog.text


# --- file systems that fail -------------------------------------------------------------------------------------------


def test_a_lost_network_stops_the_run_and_sets_nothing_aside(
    folder: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    memory.put(str(folder), "/set", recursive=True)
    source = find_images("memory://set")

    def fail(*_: object, **__: object) -> None:
        raise TimeoutError("the store does not answer")

    monkeypatch.setattr(type(memory), "cat_file", fail)
    with pytest.raises(UserError, match=r"cannot be fetched .the store does not answer"):
        open_canvases(source, 32, progress=False)
    with pytest.raises(UserError, match="cannot be fetched"):
        cut(source, Cutting(32))
    with pytest.raises(UserError, match="cannot be fetched"):
        check("memory://set", progress=False)
    assert not list(cache.glob("canvases/*"))


def test_a_shard_that_went_away_stops_the_run(folder: Path) -> None:
    source = find_images(folder)
    (folder / "part-001.tar").unlink()
    with pytest.raises(UserError, match=r"part-001.tar: has gone since"):
        open_canvases(source, 32, progress=False)


def test_a_package_that_a_protocol_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", fail)
    with pytest.raises(UserError, match=r"s3://bucket/x.tar: Install s3fs to access S3"):
        find_images("s3://bucket/x.tar")


def test_urls_without_fsspec_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(UserError, match=r"needs fsspec; install it with pip install 'belvedere\[remote\]'"):
        find_images("memory://set")


class NoRanges(http.server.SimpleHTTPRequestHandler):
    """Python's own server, which sends whole files only."""

    def log_message(self, *_: object) -> None:
        pass


class Ranges(NoRanges):
    """And one that sends parts, as most do."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        if not wanted:
            super().do_GET()
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        first, last = wanted.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last or len(data)), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop}/{len(data)}")
        self.send_header("Content-Length", str(stop + 1 - start))
        self.end_headers()
        self.wfile.write(data[start : stop + 1])

    def do_HEAD(self) -> None:
        path = Path(self.translate_path(self.path))
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"' if path.is_file() else "")
        self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
        self.end_headers()


@pytest.fixture
def served(folder: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server of the shards' folder."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(request.param, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("served", [Ranges], indirect=True)
def test_shards_over_http(served: str, crops: list[bytes]) -> None:
    source = find_images(f"{served}/part-{{000..001}}.tar")
    assert source.names == SIX
    assert content(source) == crops[:6]
    signed = find_images(f"{served}/part-001.tar?expires=1&signature=a/b.jpg")
    assert signed.names == SIX[3:]
    assert content(signed) == crops[3:6]


@pytest.mark.parametrize("served", [NoRanges], indirect=True)
def test_a_server_without_ranges_is_refused(served: str) -> None:
    with pytest.raises(UserError, match="its server sends no parts of files; copy it to this machine"):
        content(find_images(f"{served}/part-000.tar"))


def test_shards_behind_a_local_copy(folder: Path, memory: fsspec.AbstractFileSystem, crops: list[bytes]) -> None:
    """`simplecache::` fetches each shard once, whole; everything else reads the copy."""
    memory.put(str(folder), "/set", recursive=True)
    source = find_images("simplecache::memory://set/part-{000..001}.tar")
    assert source.names == SIX
    memory.rm("/set", recursive=True)
    assert content(source) == crops[:6]
