"""What somebody made to do harm: told in a line, no code run, nothing touched but the output folder."""

from __future__ import annotations

import csv
import io
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from belvedere import config as configuration
from belvedere.errors import UserError
from belvedere.images.cachefile import Damaged, read_index
from belvedere.images.canvases import open_canvases
from belvedere.images.decode import Scale, decode_canvas, read_header, reason
from belvedere.images.source import find_images
from belvedere.pretrain import checkpoint
from newcomer import WORDS, belvedere, photo_folder
from tiny import png_of, tiles

SCRIPT = "<script>document.title='run'</script>"
HANDLER = '"><img src=x onerror=alert(1)>'
BOUNDED = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def npy_of(shape: tuple[int, ...]) -> bytes:
    """A NumPy file whose header claims a shape, with a few bytes behind it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"\1" * 100


class Runs:
    """Unpickled, it leaves a file; what cannot run code never does."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of good photographs, among them every kind of bad file, in classes and files of bad names."""
    folder = photo_folder(tmp_path / "photos", 40)
    scripted = folder / SCRIPT.replace("/", "\N{DIVISION SLASH}")
    scripted.mkdir()
    for number, tile in enumerate(tiles(12)):
        Image.fromarray(tile).save(scripted / f"{HANDLER}{number}.png")
    (folder / "cats" / "bomb.png").write_bytes(png_of(60_000, 60_000))
    (folder / "cats" / "wide.png").write_bytes(png_of(2**31 - 1, 1))
    (folder / "cats" / "lies.npy").write_bytes(npy_of((10**6, 10**6)))
    np.save(folder / "cats" / "pickled.npy", np.array([Runs(tmp_path / "ran")], dtype=object), allow_pickle=True)
    (folder / "dogs" / "cut.png").write_bytes((folder / "dogs" / "000.png").read_bytes()[:200])
    (folder / "dogs" / "loop").symlink_to(folder)
    (folder / "dogs" / "round.png").symlink_to("round.png")
    (folder / "dogs" / "secret.png").symlink_to("/etc/passwd")
    return folder


class Harm(HTMLParser):
    """Scripts, handlers of events and loads from elsewhere in a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag] if tag in ("script", "iframe", "object", "embed") else []
        self.found += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]
        links = [value or "" for name, value in attrs if name in ("src", "href") and tag != "a"]
        self.found += [link for link in links if not link.startswith(("data:", "#"))]


def test_a_hostile_folder_is_trained_on_and_reported(hostile: Path, tmp_path: Path) -> None:
    before = sorted(path for path in hostile.rglob("*"))
    run, other = tmp_path / "run", tmp_path / "other"
    for out in (run, other):
        said = belvedere(tmp_path, "pretrain", hostile, "--out", out, *WORDS)
        assert said.code == 0, said.text
    told = dict(list(csv.reader((run / "skipped.csv").open()))[1:])
    assert set(told) == {f"cats/{name}" for name in ("bomb.png", "wide.png", "lies.npy", "pickled.npy")} | {
        f"dogs/{name}" for name in ("cut.png", "round.png", "secret.png")
    }
    assert "decompression bomb" in told["cats/bomb.png"]
    assert told["dogs/secret.png"] == "not an image in a known format"
    said = belvedere(tmp_path, "evaluate", run, hostile, "--quick")
    assert said.code == 0, said.text
    for command in (["report", run], ["compare", run, other, "--out", tmp_path / "compared.html"]):
        if command[0] == "compare":
            assert belvedere(tmp_path, "evaluate", other, hostile, "--quick").code == 0
        said = belvedere(tmp_path, *command)
        assert said.code == 0, said.text
    pages = [run / "report.html", tmp_path / "compared.html"]
    for page in pages:
        assert Harm(page).found == [], page
    assert "document.title" in pages[0].read_text(), "the names should be shown, as text"
    assert not (tmp_path / "ran").exists()
    assert sorted(path for path in hostile.rglob("*")) == before


def test_every_image_is_opened_as_one_of_named_formats() -> None:
    """Pillow would run Ghostscript for an EPS, whatever the file is named."""
    sources = Path(configuration.__file__).parent.rglob("*.py")
    calls = [line for file in sources for line in file.read_text().splitlines() if "Image.open(" in line]
    assert len(calls) >= 4
    assert all("formats=" in call for call in calls)


def test_files_that_would_run_code(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    photos = photo_folder(tmp_path / "photos", 8)
    np.savez(tmp_path / "images.npz", images=np.array([Runs(proof)] * 4, dtype=object), allow_pickle=True)
    torch.save({"teacher": Runs(proof)}, tmp_path / "weights.pth")
    (tmp_path / "recipe.yaml").write_text(f"train.batch: !!python/object/apply:os.mkdir ['{proof}']\n")
    out = tmp_path / "out"
    for told, words in {
        "images.npz": [tmp_path / "images.npz"],
        "weights.pth": [photos, "--init", tmp_path / "weights.pth"],
        "recipe.yaml": [photos, "--recipe", tmp_path / "recipe.yaml"],
        "train.batch": [photos, f"train.batch=!!python/object/apply:os.mkdir ['{proof}']"],
    }.items():
        assert told in belvedere(tmp_path, "pretrain", *words, "--out", out).refusal()
        assert not proof.exists()
        assert not out.exists()
    # The same file, read as pickle reads it, does run: the test can fail.
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert proof.exists()


# --- fuzzing ----------------------------------------------------------------------------------------------------------


def _seeds() -> list[bytes]:
    tile = Image.fromarray(tiles(1)[0])
    found = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        file = io.BytesIO()
        tile.save(file, kind)
        found.append(file.getvalue())
    return [*found, npy_of((4, 5, 5))]


def one_line(error: BaseException, told: str = "") -> None:
    """What a user reads of an error: a line, with `told` in it."""
    text = str(error) if isinstance(error, UserError | Damaged) else reason(error)
    assert text
    assert "\n" not in text
    assert told in text


def spoilt(content: bytes, places: list[tuple[int, int]], keep: int) -> bytes:
    """A file with some bytes replaced and the end cut off."""
    changed = bytearray(content)
    for place, value in places:
        changed[place % len(changed)] = value
    return bytes(changed[: max(1, len(changed) - keep)])


PLACES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@BOUNDED
@given(st.sampled_from(_seeds()), PLACES, st.integers(0, 300))
def test_the_decoder_gives_pixels_or_a_reason(content: bytes, places: list[tuple[int, int]], keep: int) -> None:
    data = spoilt(content, places, keep)
    try:
        read_header(data)
        pixels, _ = decode_canvas(data, 3, Scale(), 32)
    except Exception as error:
        one_line(error)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


@pytest.mark.slow
@BOUNDED
@given(places=PLACES.filter(len), keep=st.sampled_from([0, 0, 1, 70, 3000]), behind=st.booleans())
def test_a_spoilt_cache_is_never_believed(
    places: list[tuple[int, int]], keep: int, behind: bool, tmp_path: Path
) -> None:
    canvases = open_canvases(find_images(tiles(4)), 32, cache_dir=tmp_path, progress=False)
    whole = canvases.path.read_bytes()
    beside = tmp_path / "spoilt.bin"
    start = int(canvases.offsets[-1]) if behind else 0
    beside.write_bytes(spoilt(whole, [(start + place, value) for place, value in places], keep))
    try:
        index = read_index(beside)
    except Damaged as error:
        one_line(error)
    else:
        assert beside.read_bytes() == whole
        assert np.array_equal(index.offsets(), canvases.offsets)


@pytest.mark.slow
@BOUNDED
@example(text="train.steps: 2021-99-99")
@example(text="train.steps: " + "[" * 2000)
@example(text="train.lr: &a [*a]")
@example(text="? {a: b}\n: c")
@example(text="views.size: !!python/name:os.system")
@given(
    text=st.one_of(
        st.text(max_size=200),
        st.builds(
            "{}: {}".format,
            st.sampled_from(configuration.known_keys()),
            st.one_of(st.text(max_size=30), st.integers().map(str), st.floats().map(str)),
        ),
    )
)
def test_a_recipe_is_read_or_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (lambda: configuration.resolve(str(file), {}), lambda: configuration.parse_overrides([text])):
        try:
            read()
        except UserError as error:
            one_line(error)


@pytest.mark.slow
@BOUNDED
@given(PLACES.filter(len), st.sampled_from([0, 0, 1, 500]))
def test_a_spoilt_checkpoint_is_read_or_refused(places: list[tuple[int, int]], keep: int) -> None:
    file = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "step": 3, "trainer": {"weights": torch.arange(50.0)}}, file)
    path = Path(os.environ["BELVEDERE_CACHE"]) / "checkpoint.pt"
    path.write_bytes(spoilt(file.getvalue(), places, keep))
    try:
        assert checkpoint.load(path)["format"] == checkpoint.FORMAT
    except UserError as error:
        one_line(error, str(path))


@pytest.mark.slow
@BOUNDED
@given(names=st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=30)))
def test_a_list_of_any_names_is_read_or_refused(names: list[str], tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\n".join(names), encoding="utf-8")
    try:
        source = find_images(file)
    except UserError as error:
        one_line(error, str(file))
    else:
        assert len(source) >= 1
