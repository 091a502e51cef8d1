"""Files of any kind as pictures of their bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from belvedere.cli import app
from belvedere.errors import UserError
from belvedere.images.byteplots import SIDE, byte_plot, row_width
from belvedere.images.canvases import open_canvases
from belvedere.images.source import find_images


def dex(size: int, header: int = 112, start: int = 400, length: int = 600) -> bytes:
    """A file of 200s with the header of an Android program, as far as it is read."""
    content = bytearray([200]) * size
    content[:8] = b"dex\n035\0"
    for place, value in ((0x24, header), (0x68, length), (0x6C, start)):
        content[place : place + 4] = value.to_bytes(4, "little")
    return bytes(content)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files of two kinds in folders, one hidden, one empty, one of a few bytes."""
    noise = np.random.default_rng(0)
    for kind, endings in (("text", ("txt", "")), ("program", ("dex", "jpg"))):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(4):
            path = tmp_path / "set" / kind / f"{i}{'.' * bool(endings[i % 2])}{endings[i % 2]}"
            drawn = bytes(noise.integers(32, 127, 3000 + 1000 * i, np.uint8))
            path.write_bytes(drawn if kind == "text" else dex(2000 + 500 * i))
    (tmp_path / "set" / ".hidden").write_bytes(b"x" * 5000)
    (tmp_path / "set" / "text" / "empty").write_bytes(b"")
    (tmp_path / "set" / "text" / "short").write_bytes(b"x" * 31)
    return tmp_path / "set"


def test_every_file_of_a_folder_is_a_picture_with_its_folders_label(files: Path) -> None:
    source = find_images(f"bytes:{files}")
    assert source.classes == ["program", "text"]
    assert len(source) == 10
    canvases = open_canvases(source, SIDE, progress=False)
    reasons = {Path(item.name).name: item.reason for item in canvases.skipped}
    assert reasons == {"empty": "empty file", "short": "only 31 bytes, which do not fill a row of 32"}
    assert canvases.channels == 3
    assert (canvases.sizes == SIDE).all()
    text = canvases.pixels(canvases.names.index("text/0.txt"))
    assert (text == text[..., :1]).all()
    raw = (files / "text" / "0.txt").read_bytes()
    plot = np.frombuffer(raw[: len(raw) // 32 * 32], np.uint8).reshape(-1, 32)
    wanted = Image.fromarray(plot).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    assert np.array_equal(text[..., 0], np.asarray(wanted))


def test_sections_of_a_program_have_a_colour_each(files: Path) -> None:
    canvases = open_canvases(find_images(f"bytes:{files}/program"), SIDE, progress=False)
    top, middle, bottom = (canvases.pixels(0)[row].astype(int).sum(0).argmax() for row in (2, 120, 250))
    assert [top, middle, bottom] == [0, 1, 2]


def test_lists_and_globs_name_files_of_any_kind(files: Path) -> None:
    (files.parent / "list.txt").write_text("set/text/1\nset/program/0.dex\n")
    assert find_images(f"bytes:{files.parent}/list.txt").names == ["set/text/1", "set/program/0.dex"]
    assert find_images(f"bytes:{files}/*/*.dex").names == ["program/0.dex", "program/2.dex"]
    assert find_images(f"bytes:{files}/text").label_origin == "none"


def test_the_same_files_as_images_are_another_set(files: Path) -> None:
    images = files.parent / "images"
    images.mkdir()
    Image.new("L", (40, 40), 9).save(images / "a.png")
    assert find_images(str(images)).digest() != find_images(f"bytes:{images}").digest()


@pytest.mark.parametrize("place", ["nowhere", "https://a.b/files/*", "set/text/1"])
def test_what_is_no_folder_of_files_is_refused(place: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files.parent)
    with pytest.raises(UserError, match=rf"^bytes:{place.replace('*', '.')}: give a folder"):
        find_images(f"bytes:{place}")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no files found"):
        find_images(f"bytes:{tmp_path}")


def test_check_looks_at_them(files: Path) -> None:
    said = CliRunner().invoke(app, ["check", f"bytes:{files}"])
    assert said.exit_code == 0, said.output
    assert "8 usable images, 2 set aside" in said.output


@given(
    raw=hnp.arrays(np.uint8, st.integers(1, 40_000)),
    header=st.integers(0, 2**32 - 1),
    data=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_whatever_a_header_claims_each_byte_has_one_colour(raw: np.ndarray, header: int, data: tuple[int, int]) -> None:
    width = row_width(len(raw))
    if len(raw) < width:
        with pytest.raises(ValueError, match="do not fill a row"):
            byte_plot(raw, header, data)
        return
    plot = byte_plot(raw, header, data)
    assert plot.shape == (len(raw) // width, width, 3)
    assert (np.count_nonzero(plot, axis=2) <= 1).all()
    assert np.array_equal(plot.max(2), byte_plot(raw))
