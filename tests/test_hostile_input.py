"""What somebody made to do harm: told in a line, no code run, nothing touched but the output folder."""

from __future__ import annotations

import copy
import csv
import io
import math
import os
import shutil
from functools import lru_cache
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
from belvedere.backbones.build import build_backbone
from belvedere.backbones.weights import read_weights
from belvedere.errors import UserError
from belvedere.images.cachefile import Damaged, read_index
from belvedere.images.canvases import open_canvases
from belvedere.images.decode import Scale, decode_canvas, read_header, reason
from belvedere.images.source import find_images
from belvedere.measure.monitor import HealthMonitor
from belvedere.pretrain import checkpoint
from belvedere.pretrain.folder import RunFolder
from belvedere.pretrain.guard import Guard
from belvedere.pretrain.loop import Loop
from newcomer import WORDS, belvedere, photo_folder
from tiny import npy_of, png_of, tiles, tiny_trainer, train
from twist import twisted

SCRIPT = "<script>document.title='run'</script>"
HANDLER = '"><img src=x onerror=alert(1)>'
BOUNDED = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


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
    said = belvedere(tmp_path, "pretrain", hostile, "--out", run, *WORDS)
    assert said.code == 0, said.text
    assert "links that lead out of it are read: 1, such as dogs/secret.png" in said.text
    told = dict(list(csv.reader((run / "skipped.csv").open()))[1:])
    assert set(told) == {f"cats/{name}" for name in ("bomb.png", "wide.png", "lies.npy", "pickled.npy")} | {
        f"dogs/{name}" for name in ("cut.png", "loop", "round.png", "secret.png")
    }
    assert told["dogs/loop"] == "a link to a folder, not followed"
    assert "decompression bomb" in told["cats/bomb.png"]
    assert told["dogs/secret.png"] == "not an image in a known format"
    said = belvedere(tmp_path, "evaluate", run, hostile, "--quick")
    assert said.code == 0, said.text
    shutil.copytree(run, other)
    for command in (["report", run], ["compare", run, other, "--out", tmp_path / "compared.html"]):
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
    run = tmp_path / "run"
    assert belvedere(tmp_path, "pretrain", photos, "--out", run, *WORDS, "train.steps=1").code == 0
    state = torch.load(run / "checkpoint.pt")
    for hidden in ({**state, "latest": Runs(proof)}, Runs(proof)):
        torch.save(hidden, run / "checkpoint.pt")
        told = belvedere(tmp_path, "pretrain", photos, "--out", run, "--resume").refusal()
        assert told.startswith(f"{run / 'checkpoint.pt'}: is damaged")
        assert not proof.exists()
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


def _array_files() -> list[tuple[str, bytes]]:
    """Names and contents of files that hold six images, and some their labels."""
    images, found = tiles(6, (16, 16)), []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, images=images, labels=np.arange(6) % 2)
        found.append(("x.npz", file.getvalue()))
    file = io.BytesIO()
    np.save(file, images)
    return [*found, ("x.npy", file.getvalue()), ("x.npz", file.getvalue()), ("x.npy", found[0][1])]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@BOUNDED
@given(
    file=st.sampled_from(_array_files()),
    places=PLACES,
    keep=st.sampled_from([0, 0, 0, 1, 70, 3000]),
    reach=st.sampled_from([-400, 200, 6000]),
)
def test_an_array_file_is_read_or_refused(
    file: tuple[str, bytes], places: list[tuple[int, int]], keep: int, reach: int, tmp_path: Path
) -> None:
    """`reach`: bytes at the head, headers of the first array among them, or at the end, where the archive's list is."""
    name, content = file
    near = [(-1 - place % -reach if reach < 0 else place % reach, value) for place, value in places]
    path = tmp_path / name
    path.write_bytes(spoilt(content, near, keep))
    try:
        source = find_images(path)
    except UserError as error:
        one_line(error, str(path))
    else:
        assert isinstance(source.read(0), np.ndarray)


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
@example(text="train.compile: !!bool maybe")
@example(text="train.batch: !!int ''")
@example(text="train.lr: !!float ''")
@example(text="train.lr: !!timestamp x")
@example(text="train.lr: 1" + ":0" * 250 + ".5")
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
    for read in (
        lambda: configuration.resolve(str(file), {}),
        lambda: configuration.resolve("dino", configuration.parse_overrides([text.replace(": ", "=", 1)])),
    ):
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


JUNK = st.sampled_from(
    [
        *(None, -1, 3, math.inf, "x", b"x", [], ["x"], {}, {"x": 1}, {1: 1}),
        *(torch.zeros(0), torch.ones(()), torch.ones(2, 3), torch.ones(2, 0, 2, 2), torch.tensor(1 + 1j)),
        torch.ones(3).to_sparse(),
    ]
)
WAYS = st.lists(st.integers(0, 10**6), min_size=1, max_size=6)
HOW = st.sampled_from(["out", "renamed", "replaced", "replaced"])


@lru_cache(maxsize=1)
def _official() -> list[dict[str, Any]]:
    """Checkpoints as DINO, iBOT and MoCo v3 have them; each tensor is one number, spread out."""
    found = []
    for name, shape in (("vit_tiny", {"patch": 16}), ("resnet50", {})):
        model = build_backbone(name, size=(32, 32), channels=3, **shape).model
        state = {key: torch.zeros((), dtype=x.dtype).expand(x.shape) for key, x in model.state_dict().items()}
        student = {**{f"module.backbone.{key}": x for key, x in state.items()}}
        found += [state, {"state_dict": {f"module.base_encoder.{key}": x for key, x in state.items()}}]
        found += [{"teacher": {f"backbone.{key}": x for key, x in state.items()}, "student": student, "epoch": 3}]
    found[2]["student"]["module.backbone.masked_embed"] = torch.zeros(1, 192)
    return found


@pytest.mark.slow
@settings(BOUNDED, max_examples=60, deadline=None)
@example(number=0, way=[2], junk=torch.ones(2, 3), how="replaced")
@example(number=0, way=[1], junk=torch.ones(3), how="replaced")
@example(number=2, way=[1], junk=3, how="replaced")
@given(number=st.integers(0, 5), way=WAYS, junk=JUNK, how=HOW)
def test_weights_to_start_from_are_read_or_refused(
    number: int, way: list[int], junk: Any, how: str, tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    torch.save(twisted(_official()[number], way, junk, how), file)
    try:
        read_weights(str(file))
    except UserError as error:
        one_line(error, str(file))


@pytest.mark.slow
@settings(BOUNDED, max_examples=60, deadline=None)
@given(way=WAYS, junk=JUNK, how=HOW)
def test_a_twisted_checkpoint_is_resumed_or_refused(way: list[int], junk: Any, how: str, tmp_path: Path) -> None:
    loop, whole = _trained()
    loop.folder = RunFolder(tmp_path)
    torch.save(twisted(whole, way, junk, how), loop.folder.checkpoint)
    try:
        loop.resume()
    except UserError as error:
        one_line(error, str(tmp_path))
    else:
        loop.monitor.step(2, {"loss": 1.0})
        loop.monitor.verdict()


@lru_cache(maxsize=1)
def _trained() -> tuple[Loop, dict[str, Any]]:
    """A loop as far as resuming needs it, and the checkpoint of its run after two steps."""
    trainer, feed = tiny_trainer("dino")
    nothing: Any = None
    loop = Loop(trainer, feed, nothing, nothing, HealthMonitor(12, 3, None), nothing, Guard(24))
    for report in train(trainer, feed, 0, 2):
        loop.monitor.step(0, {"loss": report.loss})
    loop.monitor.look({"step": 2, "rankme": 3.0})
    best = {"step": 0, "knn": 50.0, "weights": trainer.evaluated.backbone.model.state_dict()}
    state = {"format": checkpoint.FORMAT, "step": 2, "data": feed.canvases.fingerprint, "best": best}
    state |= {"monitor": loop.monitor.state_dict(), "latest": {"knn": 50.0, "knn_start": 50.0}}
    return loop, copy.deepcopy({**state, "trainer": trainer.state_dict()})


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
