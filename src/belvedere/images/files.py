"""Files on this machine: which of them lie in a folder, in a text list, or behind a glob or braces; none is opened.

Candidates go by their endings; what a file really is, its content decides later. Hidden files and folders (leading
dot) and `__MACOSX` are left out without a word, links to folders with one; `@eaDir` thumbnails are ordinary images.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from belvedere.errors import UserError, printable
from belvedere.images.items import Skipped

_log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    (
        *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc"),
        *(".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".npy", ".pbm", ".pcx", ".pfm", ".pgm", ".png"),
        *(".pnm", ".ppm", ".psd", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"),
        *(".btf", ".ndpi", ".svs", ".tf8"),
    )
)
"""File names taken for images: what Pillow opens by itself (no EPS, PDF or video, which need programs), `.npy`, and
TIFFs by the names that slides (`.ndpi`, `.svs`) and BigTIFF go by."""
COMPRESSED = frozenset((".tgz", ".gz", ".tbz2", ".bz2", ".txz", ".xz", ".zst"))
CANDIDATES = EXTENSIONS | COMPRESSED | {".tar", ".parquet"}
"""File names that matter in a folder: images, what holds many of them, and what is worth a word of advice."""
LINKED = "a link to a folder, not followed"
"""Why what lies behind such a link is left out: it may be anything, or the folder that the link lies in."""


@dataclass(frozen=True)
class Files:
    """Image files below a root, or by their own paths; a file is known by its path, size, time of change and mode."""

    root: Path
    names: list[str]

    def read(self, i: int) -> Path:
        """Return the path of file i."""
        return self.root / self.names[i]

    def digest(self) -> str:
        """Hash the paths and stamps; no file is opened."""
        digest, root = hashlib.blake2b(digest_size=16), str(self.root.absolute())
        # Plain text: a path object for each of a million files takes seconds.
        for name in self.names:
            place = os.path.join(root, name)
            digest.update(os.fsencode(place) + b"\0" + stamp(place).encode() + b"\n")
        return digest.hexdigest()


def stamp(path: str | Path) -> str:
    """Size, time of change and mode of a file: what changes with its content."""
    try:
        info = os.stat(path)
    except OSError as error:
        return f"gone: {error.errno}"
    return f"{info.st_size} {info.st_mtime_ns} {info.st_mode}"


def suffix(name: str) -> str:
    """Ending of a file's name in lower case, with its dot."""
    # Asked of every file several times, which pathlib would take most of a listing for.
    return os.path.splitext(name)[1].lower()


def walk(root: Path, every: bool = False) -> tuple[list[str], list[Skipped]]:
    """Names of the candidates below `root`, sorted; every real folder is visited once, links to folders never.

    Links to files are followed; where some lead out of `root`, one line says so.

    Args:
        every: every file is one, whatever its name ends with.
    """
    names: list[str] = []
    skipped: list[Skipped] = []
    links: list[str] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            skipped.append(Skipped(folder or ".", f"folder cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if ignored(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif every or suffix(entry.name) in CANDIDATES or (entry.is_symlink() and entry.is_dir()):
                if entry.is_file(follow_symlinks=False):  # known from the folder, without asking of each file
                    names.append(name)
                    continue
                _sort_out(root, name, names, skipped)
                if entry.is_symlink() and names and names[-1] == name:
                    links.append(name)
    _tell_of_links(root, links)
    return sorted(names), sorted(skipped, key=lambda item: item.name)


def _tell_of_links(root: Path, links: list[str]) -> None:
    """One line about files that lie elsewhere: whoever may write into the folder decides what is read there."""
    inside = root.resolve()
    outside = sorted(name for name in links if not (root / name).resolve().is_relative_to(inside))
    if outside and os.environ.get("RANK", "0") == "0":  # not from every process
        _log.warning(
            "%s: links that lead out of it are read: %d, such as %s", root, len(outside), printable(outside[0])
        )


def glob(pattern: Path, every: bool = False) -> tuple[Path, list[str], list[Skipped]]:
    """Root, names and skipped of a glob; the root is its leading part without wildcards; `every` as in `walk`."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
    root = Path(*parts[:first])
    names: list[str] = []
    skipped: list[Skipped] = []
    # pathlib's ** does not follow links to folders, which glob.glob's does, in endless walks.
    for path in sorted(set(root.glob("/".join(parts[first:])))):
        below = path.relative_to(root)
        wanted = every or path.suffix.lower() in CANDIDATES or _is_linked_folder(path)
        if wanted and not any(ignored(part) for part in below.parts):
            _sort_out(root, below.as_posix(), names, skipped)
    _tell_of_links(root, [name for name in names if os.path.islink(root / name)])
    return root, sorted(names), skipped


def read_list(path: Path) -> tuple[list[str], list[Skipped]]:
    """Names and skipped of a text list, in its own order; any extension will do, since each file was asked for."""
    names: list[str] = []
    skipped: list[Skipped] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of paths in UTF-8 ({error})") from error
    for line in filter(str.strip, lines):
        asked = Path(line)
        inside = asked.is_absolute() and asked.is_relative_to(path.parent.absolute())
        name = (asked.relative_to(path.parent.absolute()) if inside else asked).as_posix()
        _sort_out(path.parent, name, names, skipped)
    return names, skipped


def expand_braces(pattern: str) -> list[str]:
    """What a shell makes of braces: `{000..012}` counts, with the zeros of its first number, and `{a,b}` lists."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if i % 2 == 0 else _alternatives(part) for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def ignored(part: str) -> bool:
    """Whether a file or folder of this name is left out without a word."""
    return part.startswith(".") or part == "__MACOSX"


def _alternatives(inside: str) -> list[str]:
    counted = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if counted:
        first, last = counted.groups()
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def _is_linked_folder(path: str | Path) -> bool:
    return os.path.islink(path) and os.path.isdir(path)


def _sort_out(root: Path, name: str, names: list[str], skipped: list[Skipped]) -> None:
    """Append `name` to `names`, or to `skipped` where it is no file; a real folder is neither."""
    path = os.path.join(root, name)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        reason = "dangling link" if os.path.islink(path) and isinstance(error, FileNotFoundError) else error.strerror
        skipped.append(Skipped(name, str(reason)))
        return
    if stat.S_ISREG(mode):
        names.append(name)
    elif stat.S_ISDIR(mode):
        if os.path.islink(path):
            skipped.append(Skipped(name, LINKED))
    else:  # opening a pipe would wait for ever
        skipped.append(Skipped(name, "not a regular file"))
