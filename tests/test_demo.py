"""The demo: real photographs, a fair split, no network, and a second call that is welcome."""

from __future__ import annotations

import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from belvedere import demo
from belvedere.errors import UserError
from newcomer import TINY


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse sockets and names, and remember who asked: a caller may well swallow the refusal."""
    asked = list[str]()

    def refuse(*given: Any, **_: Any) -> NoReturn:
        asked.append("".join(traceback.format_stack(limit=8)))
        raise OSError(f"no network: {given}")

    for way in ("connect", "connect_ex", "sendto", "sendmsg"):
        monkeypatch.setattr(socket.socket, way, refuse)
    for way in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, way, refuse)
    yield
    assert not asked, asked[0]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiles on disk."""
    return demo.write_tiles(tmp_path_factory.mktemp("demo") / "images")


def test_every_photograph_gives_tiles_to_both_parts(images: Path) -> None:
    names = sorted(demo.photographs())
    assert len(names) == 20
    for part in ("train", "held_out"):
        assert sorted(folder.name for folder in (images / part).iterdir()) == names
        for folder in (images / part).iterdir():
            assert len(list(folder.iterdir())) >= 2
    assert max(len(list(folder.iterdir())) for folder in (images / "train").iterdir()) <= demo.MOST_TRAIN
    assert max(len(list(folder.iterdir())) for folder in (images / "held_out").iterdir()) <= demo.MOST_HELD_OUT


def test_tiles_are_gray_pictures_of_one_size(images: Path) -> None:
    for file in sorted(images.rglob("*.png"))[::97]:
        with Image.open(file) as tile:
            assert (tile.mode, tile.size) == ("L", (demo.TILE, demo.TILE))
            assert np.asarray(tile).dtype == np.uint8


def test_train_and_held_out_tiles_share_no_pixel() -> None:
    # A picture whose every pixel is its own column number says where each tile was cut.
    for height, width in ((191, 384), (512, 512), (872, 1000)):
        columns = np.broadcast_to(np.arange(width), (height, width))
        train, held_out = demo.cut(columns)
        assert train
        assert held_out
        assert max(int(tile.max()) for tile in train) < min(int(tile.min()) for tile in held_out)


def test_held_out_tiles_do_not_overlap() -> None:
    places = np.arange(512 * 512).reshape(512, 512)
    _, held_out = demo.cut(places)
    pixels = np.concatenate([tile.ravel() for tile in held_out])
    assert len(np.unique(pixels)) == len(pixels)


def test_tiles_are_the_same_every_time(images: Path, tmp_path: Path) -> None:
    again = demo.write_tiles(tmp_path / "images")
    files = sorted(file.relative_to(images) for file in images.rglob("*.png"))
    assert files == sorted(file.relative_to(again) for file in again.rglob("*.png"))
    assert all((images / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_tiles_that_are_there_are_left_alone(images: Path) -> None:
    stamps = {file: file.stat().st_mtime_ns for file in images.rglob("*.png")}
    assert demo.write_tiles(images) == images
    assert {file: file.stat().st_mtime_ns for file in images.rglob("*.png")} == stamps


def test_half_cut_tiles_are_cut_anew(tmp_path: Path) -> None:
    part = tmp_path / ".images.part" / "train" / "brick"
    part.mkdir(parents=True)
    (part / "junk.png").write_text("a kill came here")
    images = demo.write_tiles(tmp_path / "images")
    assert not (images / "train" / "brick" / "junk.png").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["images"]


def test_without_the_photographs_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UserError) as error:
        demo.run(tmp_path / "demo")
    assert str(error.value) == 'the demo needs photographs: pip install "belvedere[demo]"'
    assert not (tmp_path / "demo" / "images").exists()


@pytest.mark.slow
def test_the_demo_from_end_to_end_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {key: value for key, value in TINY.items() if key not in ("views.locals", "views.size")}
    settings = {**demo.SETTINGS, **tiny, "monitor.knn": 200}
    monkeypatch.setattr(demo, "SETTINGS", {key: value for key, value in settings.items() if key != "train.minutes"})
    page = demo.run(tmp_path / "demo", device="cpu")
    said = capsys.readouterr().out
    assert page == tmp_path / "demo" / "run" / "report.html"
    assert page.is_file()
    assert "from which photograph" in said
    assert "k-NN on held-out tiles" in said
    assert "raw pixels" in said
    assert "untrained network" in said
    assert str(page.absolute()) in said
    assert demo.run(tmp_path / "demo", device="cpu") == page
    assert "continues at step 4 of 4" in capsys.readouterr().out
