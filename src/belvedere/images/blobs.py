"""One large file of which parts are read: on this machine, or behind any fsspec URL.

Every read opens, seeks and closes for itself (locally 14 microseconds in all, beside a decode of a millisecond), so
that a blob is used by many threads at once, crosses process borders and never runs out of file handles.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.request import url2pathname

from belvedere.errors import UserError
from belvedere.images.files import CANDIDATES, expand_braces, ignored, suffix
from belvedere.images.parallel import ordered_map

STAMPS = (
    *("ETag", "etag", "mtime", "LastModified", "Last-Modified", "last_modified", "updated", "created"),
    *("md5Hash", "Content-MD5", "checksum"),
)
"""What file systems call a file's version or time of change."""


@dataclass(frozen=True)
class Blob:
    """One file.

    Attributes:
        path: as its file system knows it.
        size: in bytes; -1 where the file system does not tell.
        stamp: changes with the content: time of change, or version, where the file system has one.
        store: the fsspec file system; None on this machine.
    """

    path: str
    size: int
    stamp: str
    store: Any = None

    @classmethod
    def local(cls, path: Path) -> Blob:
        """The file `path` of this machine.

        Raises:
            UserError: it cannot be opened.
        """
        try:
            info = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error.strerror})") from error
        return cls(str(path.absolute()), info.st_size, f"{info.st_mtime_ns} {info.st_mode}")

    @property
    def key(self) -> str:
        """What this file with this content is known by."""
        place = "" if self.store is None else self.store.unstrip_protocol(self.path)
        return f"{place or self.path}\0{self.size}\0{self.stamp}"

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """The bytes from `start` on, `size` of them or all.

        Raises:
            OSError: the file ends before, or cannot be read.
            UserError: its remote file system is out of reach, or serves no parts of files.
        """
        if self.store is None:
            with io.FileIO(self.path) as file:
                file.seek(start)
                data = file.readall() if size is None else file.read(size) or b""
        else:
            data = self._fetch(start, size)
        if size is not None and len(data) != size:
            raise OSError("the file ends inside it")
        return data

    def open(self) -> BinaryIO:
        """The file for reading from its start and seeking.

        Raises:
            UserError: it cannot be opened, or its file system cannot seek.
        """
        try:
            opened = io.BufferedReader(io.FileIO(self.path)) if self.store is None else self.store.open(self.path, "rb")
        except Exception as error:  # each file system has exceptions of its own
            raise UserError(f"{self.path}: cannot be opened ({_said(error)})") from error
        if not opened.seekable():
            opened.close()
            raise UserError(f"{self.path}: its server sends no parts of files; copy it to this machine first")
        return cast(BinaryIO, opened)

    def _fetch(self, start: int, size: int | None) -> bytes:
        try:
            data: bytes = self.store.cat_file(self.path, start or None, None if size is None else start + size)
        except FileNotFoundError:
            raise
        except Exception as error:
            # Not set aside like a broken image: an hour without a network must not cost a data set half its images.
            raise UserError(
                f"{self.path}: cannot be fetched ({_said(error)}); start again when it can, what is done stays done"
            ) from error
        if size is not None and len(data) > size:
            raise UserError(f"{self.path}: its server sends no parts of files; copy it to this machine first")
        return data


@dataclass(frozen=True)
class Blobs:
    """Images that are files of a remote file system."""

    blobs: list[Blob]

    def read(self, i: int) -> bytes:
        """Fetch image i."""
        return self.blobs[i].read()

    def digest(self) -> str:
        """Hash what the file system tells of each; nothing is fetched."""
        return digest_of(self.blobs)


def digest_of(blobs: Iterable[Blob]) -> str:
    """One hash of the keys of all."""
    digest = hashlib.blake2b(digest_size=16)
    for blob in blobs:
        digest.update(os.fsencode(blob.key) + b"\n")
    return digest.hexdigest()


def is_url(text: str) -> bool:
    """Whether a word names something behind a URL."""
    return "://" in text


def local_path(url: str) -> str:
    """The path of a file:// URL; anything else as it is."""
    if not url.startswith("file://"):
        return url
    # Not urlsplit: a path may hold ?, # and what globs are made of.
    return url2pathname(url.removeprefix("file://").removeprefix("localhost"))


def list_url(url: str) -> dict[str, Blob]:
    """Candidates behind a URL by their names relative to its folder: of one file, a folder, a glob, or braces.

    Raises:
        UserError: the protocol's package is missing, nothing is there, or the file system refuses.
    """
    try:
        store, path = _store(url)
        found = _infos(store, path)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file or folder") from error
    except Exception as error:  # each file system has exceptions of its own
        raise UserError(f"{url}: cannot be listed ({_said(error)})") from error
    root = _folder(path)
    blobs = {}
    for place, info in sorted(found.items()):
        name = place.removeprefix(root).lstrip("/").partition("?")[0]
        if info.get("type") != "directory" and suffix(name) in CANDIDATES and not any(map(ignored, name.split("/"))):
            blobs[name] = _blob(store, place, info)
    return blobs


def _store(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise UserError(f"{url}: needs fsspec; install it with pip install 'belvedere[remote]'") from error
    try:
        store, path = url_to_fs(url)
    except ImportError as error:  # fsspec says which package the protocol needs
        raise UserError(f"{url}: {_said(error)} (pip install it)") from error
    store.invalidate_cache()  # listings outlive the files that a long session saw
    return store, path


def _infos(store: Any, path: str) -> dict[str, dict[str, Any]]:
    """What the file system tells of every file behind a path."""
    if "{" in path:
        places = expand_braces(path)

        def look(i: int) -> dict[str, Any] | None:
            try:
                info: dict[str, Any] = store.info(places[i])
            except FileNotFoundError:
                return None
            return info

        found = list(ordered_map(look, len(places), None, "looking for files", True, block=1))
        refuse_missing(path, [place for place, info in zip(places, found, strict=True) if info is None], len(places))
        return {place: info for place, info in zip(places, found, strict=True) if info is not None}
    if any(mark in path for mark in "*["):
        return cast(dict[str, dict[str, Any]], store.glob(path, detail=True))
    if suffix(path.partition("?")[0]) in CANDIDATES:
        return {path: store.info(path)}
    return cast(dict[str, dict[str, Any]], store.find(path, detail=True))


def refuse_missing(pattern: str, missing: list[str], total: int) -> None:
    """Stop where some of the files that braces stand for are not there.

    Raises:
        UserError: with their number and the first of them.
    """
    if missing:
        raise UserError(f"{pattern}: {len(missing)} of {total} files are missing, the first is {missing[0]}")


def _folder(path: str) -> str:
    """What names are relative to: the folder of a file, or the last one before a wildcard or brace."""
    path = path.partition("?")[0]  # of a web address
    marks = [path.index(mark) for mark in "*[{" if mark in path]
    if marks:
        return path[: min(marks)].rpartition("/")[0]
    return path.rpartition("/")[0] if suffix(path) in CANDIDATES else path


def _blob(store: Any, place: str, info: dict[str, Any]) -> Blob:
    size = info.get("size")
    version = next((str(info[key]) for key in STAMPS if info.get(key)), "")
    return Blob(place, -1 if size is None else int(size), version, store)


def _said(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
