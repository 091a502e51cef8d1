"""WebDataset tar shards: images read where they lie in the archive, which is never unpacked.

A shard's headers are read once, and (shard, offset, size) of every image is kept beside the canvas cache. From then on
shards are random access like a folder: canvases are decoded once, and the order of training is a permutation of the
whole set. A reader of streams has to shuffle within a buffer instead: one of 1,000 images over shards that were written
class by class puts 22 classes into a batch of 256 where a permutation puts 92 (measured in tests/pretrain).

WebDataset's conventions: the key of a member is its path up to the first dot of its base name, `KEY.cls` (a number or
a text) or "label" in `KEY.json` is the label of the key's images, and a key may have several images. Where no member
says so, folders inside the shards name classes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from belvedere.cachefolder import cache_folder
from belvedere.errors import UserError
from belvedere.images.blobs import Blob, digest_of
from belvedere.images.cachefile import replacing
from belvedere.images.files import COMPRESSED, EXTENSIONS, ignored, suffix
from belvedere.images.items import Skipped, Source, choose_labels, make_source
from belvedere.images.labels import SPLITS, Labels, encode, from_folders, splits_of_files
from belvedere.images.parallel import ordered_map

INDEX_VERSION = 1
LABELS = (".cls", ".json")
LARGEST_LABEL = 2**20
"""Bytes of a member with a label; one above is something else, and is not read."""
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardIndex:
    """The images of one shard in its order: names, first byte and size of each, labels (None without), and the rest."""

    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[str | int | None] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Members:
    """Images in shards: image i is `size[i]` bytes of `blobs[shard[i]]` from `offset[i]` on; arrays int64 [N]."""

    blobs: list[Blob]
    shard: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]

    def read(self, i: int) -> bytes:
        """Return the file of image i."""
        blob = self.blobs[int(self.shard[i])]
        try:
            return blob.read(int(self.offset[i]), int(self.size[i]))
        except FileNotFoundError as error:
            raise UserError(f"{blob.path}: has gone since its images were listed") from error

    def digest(self) -> str:
        """Hash which bytes of which shards; nothing is read."""
        digest = hashlib.blake2b(digest_of(self.blobs).encode(), digest_size=16)
        for array in (self.shard, self.offset, self.size):
            digest.update(array.tobytes())
        return digest.hexdigest()


def from_shards(blobs: dict[str, Blob], skipped: list[Skipped], described: str, choice: str) -> Source:
    """The images of tar shards, in the order of the shards' names and of their members.

    Args:
        blobs: the shards by their names relative to a common folder.
        skipped: what was set aside before.
        choice: as `labels` in `find_images`.

    Raises:
        UserError: a shard is compressed or cannot be opened, or there is not a single image.
    """
    shards = list(blobs)

    def load(i: int) -> ShardIndex:
        return _indexed(blobs[shards[i]])

    indices = list(ordered_map(load, len(shards), None, "indexing shards", progress=True, block=1))
    skipped = skipped + [Skipped(*item) for index in indices for item in index.skipped]
    plain = [name for index in indices for name in index.names]
    if not plain:
        why = f" ({skipped[0].name}: {skipped[0].reason})" if skipped else ""
        raise UserError(f"{described}: no images in {len(shards)} tar files{why}")
    plain = _below_their_folder(plain)
    counts = [len(index.names) for index in indices]

    def automatic() -> Labels:
        own = [label for index in indices for label in index.labels]
        found = _labels(own, from_folders(plain, described, required=False))
        splits = splits_of_files(shards)
        if found.splits is not None or splits is None:
            return found
        return replace(found, splits=_for_each(splits, counts))

    names = _distinct(plain, shards, counts)
    members = Members(
        blobs=list(blobs.values()),
        shard=np.repeat(np.arange(len(shards)), counts),
        offset=np.concatenate([np.array(index.offsets, np.int64) for index in indices]),
        size=np.concatenate([np.array(index.sizes, np.int64) for index in indices]),
    )
    found = choose_labels(choice, plain if choice == "folder" else names, described, automatic)
    return make_source(names, found, skipped, None, described, members)


def refuse_compressed(names: list[str], described: str) -> None:
    """Stop where all that is there is a compressed archive.

    Raises:
        UserError: with what to do.
    """
    packed = [name for name in names if suffix(name) in COMPRESSED and ".t" in name.lower()]
    if packed:
        raise UserError(
            f"{described}: {packed[0]} is compressed, so has no random access; decompress it to a plain .tar"
        )


def index_shard(file: BinaryIO, described: str) -> ShardIndex:
    """Read the headers of a tar file, and the members that hold labels.

    What cannot be used is set aside with its reason: a cut member, all behind a damaged header, links, devices, sparse
    members, and names that leave the archive.

    Raises:
        UserError: it is compressed.
    """
    index = ShardIndex()
    keys: list[str] = []
    labels: dict[str, str | int] = {}
    unread: list[str] = []
    for member, reason in _members(file, described):
        parts = [part for part in member.name.split("/") if part not in ("", ".")]  # so no name is absolute
        name = "/".join(parts)
        key, ending = _split(name)
        if any(ignored(part) for part in parts if part != ".."):
            continue
        if suffix(name) in EXTENSIONS:
            why = reason or _unfit(member, name)
            if why:
                index.skipped.append((name, why))
                continue
            index.names.append(name)
            index.offsets.append(member.offset_data)
            index.sizes.append(member.size)
            keys.append(key)
        elif ending in LABELS and member.isreg() and not reason and member.size <= LARGEST_LABEL:
            file.seek(member.offset_data)
            label = _label(file.read(member.size), ending)
            if label is None:
                unread.append(name)
            elif label != "" and (ending == ".cls" or key not in labels):
                labels[key] = label
        elif reason:
            index.skipped.append((name, reason))
    if unread:
        _log.warning("%s: %d labels cannot be read, the first is %s", described, len(unread), unread[0])
    index.labels.extend(labels.get(key) for key in keys)
    return _last_of_each(index)


def _members(file: BinaryIO, described: str) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Members with "", and as the last one perhaps what is damaged, with its reason."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(tarfile.BLOCKSIZE)
    for magic, name in COMPRESSIONS.items():
        if head.startswith(magic):
            raise UserError(
                f"{described}: is compressed ({name}), so has no random access; decompress it to a plain .tar"
            )
    file.seek(0)
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")
    except Exception as error:  # hostile headers raise more than tarfile's own
        yield _damaged(described), f"no tar file ({str(error) or type(error).__name__})"
        return
    # Header by header, since a TarFile that is iterated keeps a kilobyte of every member.
    at, tar.offset = -1, 0
    while tar.offset > at:
        at = tar.offset
        file.seek(at)
        if not file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # the mark of the end, or no byte more
            return
        file.seek(at)
        try:
            member = tarfile.TarInfo.fromtarfile(tar)
        except Exception as error:  # hostile headers raise more than tarfile's own: recursion, overflow
            why = str(error) or type(error).__name__
            yield _damaged(described), f"damaged at byte {at}, and what follows is lost ({why})"
            return
        if member.isreg() and not 0 <= member.size <= end - member.offset_data:
            yield member, "cut off: the shard ends inside it"
            return
        yield member, ""
    yield _damaged(described), f"damaged at byte {at}: its headers go in circles"


def _damaged(described: str) -> tarfile.TarInfo:
    """Stands for what cannot be named."""
    return tarfile.TarInfo(described.rpartition("/")[2])


def _unfit(member: tarfile.TarInfo, name: str) -> str:
    """Why a member that is named like an image is none, or ""."""
    if ".." in name.split("/"):
        return "its name leaves the archive"
    if member.issym() or member.islnk():
        return "a link inside a tar file"
    if member.isdir():
        return "a folder named like an image"
    if not member.isreg() or member.issparse():
        return "not a regular file"
    return ""


def _split(name: str) -> tuple[str, str]:
    """WebDataset's key and ending: a/b.seg.png is a/b and .seg.png."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{ending}".lower()


def _label(content: bytes, ending: str) -> str | int | None:
    """The label that a member holds: "" if it says none, None if it cannot be read."""
    try:
        text = content.decode("utf-8-sig").strip()
        found = json.loads(text) if ending == ".json" else text
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict):
        found = found.get("label", "")
    elif ending == ".json":
        found = ""
    return found if isinstance(found, str | int) and not isinstance(found, bool) else ""


def _last_of_each(index: ShardIndex) -> ShardIndex:
    """Without the members that a later one of the same name replaces, as when a tar file is unpacked."""
    last = {name: i for i, name in enumerate(index.names)}
    if len(last) == len(index.names):
        return index
    kept = sorted(last.values())
    replaced = [name for i, name in enumerate(index.names) if last[name] != i]
    return ShardIndex(
        names=[index.names[i] for i in kept],
        offsets=[index.offsets[i] for i in kept],
        sizes=[index.sizes[i] for i in kept],
        labels=[index.labels[i] for i in kept],
        skipped=index.skipped + [(name, "replaced by a later member of the same name") for name in replaced],
    )


def _labels(own: list[str | int | None], folders: Labels) -> Labels:
    """The shards' own labels where there is one, else those of the folders; splits are the folders' in any case."""
    if all(label is None for label in own):
        return folders
    values, classes = encode(["" if label is None else label for label in own])
    return Labels(values, classes, "shards", folders.splits)


def _for_each(texts: list[str], counts: list[int]) -> list[str]:
    """The text of its shard for every image."""
    return [text for text, count in zip(texts, counts, strict=True) for _ in range(count)]


def _below_their_folder(names: list[str]) -> list[str]:
    """The names without the folder that all lie in, as in a tar file of one folder; a split's name stays."""
    common = os.path.commonpath([name.rpartition("/")[0] for name in names]).split("/")
    shared = "".join(f"{part}/" for part in takewhile(lambda part: part and part.lower() not in SPLITS, common))
    return [name.removeprefix(shared) for name in names]


def _distinct(names: list[str], shards: list[str], counts: list[int]) -> list[str]:
    """The names, all with their shard ahead where one name is in two shards."""
    if len(set(names)) == len(names):
        return names
    ahead = _for_each([shard.removesuffix(".tar") for shard in shards], counts)
    twice = Counter(names).most_common(1)[0][0]
    _log.info("%s is in several shards; names have their shard's ahead", twice)
    return [f"{shard}/{name}" for shard, name in zip(ahead, names, strict=True)]


def _indexed(blob: Blob) -> ShardIndex:
    """The kept index of a shard, or a new one."""
    key = hashlib.blake2b(os.fsencode(f"{INDEX_VERSION} {blob.key}"), digest_size=16).hexdigest()
    path = cache_folder() / "shards" / key
    kept = _read_index(path)
    if kept is not None:
        return kept
    with blob.open() as file:
        index = index_shard(file, blob.path)
    content = json.dumps(asdict(index)).encode()
    try:
        with replacing(path) as file:
            file.write(hashlib.blake2b(content).digest() + content)
    except UserError as error:
        _log.warning("the index of %s is not kept, and is made again next time: %s", blob.path, error)
    return index


def _read_index(path: Path) -> ShardIndex | None:
    """A kept index; None where there is none, or a damaged one, which is said."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = hashlib.blake2b().digest_size
    if hashlib.blake2b(content[size:]).digest() != content[:size]:
        _log.warning("the kept index %s is damaged and is made again", path)
        return None
    return ShardIndex(**json.loads(content[size:]))
