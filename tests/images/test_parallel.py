"""Images on several threads or processes: the same canvases, in the same order, whichever it is."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from belvedere.errors import UserError
from belvedere.images import parallel
from belvedere.images.canvases import open_canvases
from belvedere.images.check import check
from belvedere.images.helper import Helper
from belvedere.images.items import Items, Skipped
from belvedere.images.parallel import are_many_small, map_images
from belvedere.images.source import find_images


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "MANY", 5)
    monkeypatch.setattr(parallel, "SENT", 2)


def whose(items: Items, i: int, name: str, row: int) -> tuple[int, str, int, Path]:
    """Who did it, and what was asked for."""
    path = items.read(i)
    assert isinstance(path, Path)
    return os.getpid(), name, row, path


def complain(items: Items, i: int, name: str, row: int) -> int:
    """The fourth image cannot be reached."""
    if row == 3:
        raise UserError(f"{name}: out of reach")
    return row


@pytest.mark.usefixtures("few_are_many")
def test_processes_make_the_canvases_that_threads_make(photos: Path, tmp_path: Path) -> None:
    (photos / "cats" / "broken.jpg").write_bytes(b"no")
    source = find_images(photos)
    assert are_many_small(source, range(len(source)))
    many = open_canvases(source, 64, cache_dir=tmp_path / "processes", workers=2, progress=False)
    parallel.MANY = 100
    few = open_canvases(source, 64, cache_dir=tmp_path / "threads", workers=2, progress=False)
    assert (many.names, many.fingerprint, many.skipped) == (few.names, few.fingerprint, few.skipped)
    assert many.skipped == [Skipped("cats/broken.jpg", "not an image in a known format")]


@pytest.mark.usefixtures("few_are_many")
def test_processes_see_what_threads_see(photos: Path) -> None:
    (photos / "cats" / "broken.jpg").write_bytes(b"no")
    shutil.copy(photos / "cats" / "0.jpg", photos / "cats" / "again.jpg")
    many = check(photos, workers=2, progress=False)
    parallel.MANY = 100
    few = check(photos, workers=2, progress=False)
    assert many == replace(few, seconds=many.seconds)
    assert (many.count, many.duplicates) == (7, [["cats/0.jpg", "cats/again.jpg"]])


@pytest.mark.usefixtures("few_are_many")
def test_work_is_done_elsewhere_in_the_order_asked_for(photos: Path) -> None:
    source, rows = find_images(photos), [5, 0, 3, 1, 4]
    found = list(map_images(whose, source, rows, 2, "asking", progress=False))
    assert os.getpid() not in {process for process, *_ in found}
    assert [rest for _, *rest in found] == [[source.names[row], row, photos / source.names[row]] for row in rows]
    with pytest.raises(UserError, match="out of reach"):
        list(map_images(complain, source, range(6), 2, "asking", progress=False))


def die(items: Items, i: int, name: str, row: int) -> int:
    """As a decoder that a damaged file crashes."""
    if row == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return row


@pytest.mark.usefixtures("few_are_many")
def test_a_process_that_dies_is_told_of(photos: Path) -> None:
    source = find_images(photos)
    with pytest.raises(UserError, match=r"the process that decoded cats/2\.jpg to cats/3\.jpg died.*images\.workers=1"):
        list(map_images(die, source, range(6), 2, "asking", progress=False))


def test_half_an_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pickle.dumps((b"0" * 1000, None))
    half = SimpleNamespace(stdin=io.BytesIO(), stdout=io.BytesIO(whole[: len(whole) // 2]))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: half)
    with pytest.raises(EOFError):
        Helper().ask(whose)


ORPHANS = """
import sys, time
from belvedere.images import parallel
from belvedere.images.source import find_images

def slow(items, i, name, row):
    import os
    print(os.getpid(), file=sys.stderr, flush=True)
    time.sleep(0.5)

if __name__ == "__main__":
    parallel.MANY = parallel.SENT = 1
    sys.modules["slowly"] = sys.modules["__main__"]
    slow.__module__ = "slowly"
    list(parallel.map_images(slow, find_images(sys.argv[1]), range(6), 2, "asking", progress=False))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_their_owner(number: int, photos: Path, tmp_path: Path) -> None:
    script = tmp_path / "slowly.py"
    script.write_text(ORPHANS)
    owner = subprocess.Popen([sys.executable, str(script), str(photos)], stderr=subprocess.PIPE, text=True)
    assert owner.stderr is not None
    helpers = {int(owner.stderr.readline()) for _ in range(2)}
    assert owner.pid not in helpers
    owner.send_signal(number)
    # This ends when all that could write there have ended.
    _, rest = owner.communicate(timeout=60)
    assert "Traceback" not in rest


@pytest.mark.usefixtures("few_are_many")
def test_one_worker_is_this_process(photos: Path) -> None:
    found = list(map_images(whose, find_images(photos), range(6), 1, "asking", progress=False))
    assert {process for process, *_ in found} == {os.getpid()}


def test_when_processes_pay(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_images(photos)
    assert not are_many_small(source, range(6))
    monkeypatch.setattr(parallel, "MANY", 6)
    assert are_many_small(source, range(6))
    assert not are_many_small(source, range(5))
    (photos / source.names[0]).unlink()
    assert are_many_small(source, range(6)), "a file that is gone is told of when it is read"
    monkeypatch.setattr(parallel, "SMALL", 100)
    assert not are_many_small(source, range(6))
    monkeypatch.undo()
    shutil.make_archive(str(tmp_path / "shard-0"), "tar", photos)
    shards = find_images(tmp_path / "shard-0.tar")
    monkeypatch.setattr(parallel, "MANY", 1)
    assert not are_many_small(shards, range(len(shards)))
