"""`embed --out FOLDER/`: every image in exactly one part, whoever writes them, and however often they are stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyarrow import dataset, parquet

import belvedere
from belvedere import UserError, embedding
from belvedere.embedding import SKIPPED, part_rows, share
from embedding import processes_of
from newcomer import TINY, photo_folder, without_torch
from newcomer import belvedere as command
from test_bad_input import mounted
from tiny import tiles

SIZE = 20
PARTS = 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """95 labelled photographs and two files that are none: 4 parts of 20 and one of 17."""
    photos = photo_folder(tmp_path_factory.mktemp("parts") / "photos", 95)
    (photos / "cats" / "broken.png").write_bytes(b"no image")
    (photos / "dogs" / "000a.png").write_bytes(b"nor this")
    return photos


@pytest.fixture(scope="module")
def shards(photos: Path) -> Path:
    """The same files in two tars, class by class."""
    folder = photos.parent / "shards"
    folder.mkdir()
    for name in ("cats", "dogs"):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for file in sorted((photos / name).iterdir()):
                tar.add(file, file.relative_to(photos))
    return folder


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    return belvedere.pretrain(photos, "simclr", out=photos.parent / "run", device="cpu", settings=TINY)


@pytest.fixture(scope="module")
def whole(run: Path, photos: Path) -> Path:
    """A folder of all parts; nobody writes into it again."""
    return make(run, photos, photos.parent / "whole")


def make(run: Path, data: Any, out: Path, **more: Any) -> Path:
    return belvedere.embed_parts(run, data, out, **{"part_images": SIZE, "device": "cpu", **more})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(numbers: range) -> list[str]:
    return [f"part-{k:05}.parquet" for k in numbers]


def vectors(table: pyarrow.Table) -> NDArray[np.float32]:
    """[N,D]"""
    return np.stack(table["features"].to_numpy())


# --- what is in them --------------------------------------------------------------------------------------------------


@given(images=st.integers(0, 3000), size=st.integers(1, 1000))
def test_every_image_is_in_exactly_one_part(images: int, size: int) -> None:
    rows = part_rows(images, size)
    assert [i for part in rows for i in part] == list(range(images))
    assert all(len(part) == size for part in rows[:-1])
    assert all(0 < len(part) <= size for part in rows)


@given(parts=st.integers(0, 300), processes=st.integers(1, 20), there=st.sets(st.integers(0, 299)))
def test_every_missing_part_has_exactly_one_process(parts: int, processes: int, there: set[int]) -> None:
    shares = [share(process, processes, parts, there) for process in range(processes)]
    assert sorted(k for share in shares for k in share) == [k for k in range(parts) if k not in there]
    assert all(len(one) <= -(-parts // processes) for one in shares)


def test_the_parts_read_as_the_one_table_of_a_single_file(run: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    features = belvedere.embed(run, photos, out=tmp_path / "one.parquet", device="cpu")
    one, parts = parquet.read_table(tmp_path / "one.parquet"), dataset.dataset(whole).to_table()
    assert parts.schema.equals(one.schema)
    assert parts["path"].to_pylist() == one["path"].to_pylist()
    assert parts["label"].to_pylist() == one["label"].to_pylist()
    assert parts.schema.field("features").type == pyarrow.list_(pyarrow.float32(), TINY["backbone.width"])
    assert vectors(parts).dtype == np.float32
    # Rows of a matrix product may round otherwise at another place in the block.
    np.testing.assert_allclose(vectors(parts), features, atol=1e-5)
    assert vectors(parts).std() > 0.1


def test_sizes_names_and_what_was_set_aside(photos: Path, whole: Path) -> None:
    assert sorted(files(whole)) == [SKIPPED, *names(range(PARTS))]
    rows = [parquet.read_metadata(whole / name).num_rows for name in names(range(PARTS))]
    assert rows == [20, 20, 18, 20, 17]
    lines = (whole / SKIPPED).read_text().splitlines()
    assert lines[0] == "path,reason"
    assert [line.partition(",")[0] for line in lines[1:]] == ["cats/broken.png", "dogs/000a.png"]


def test_a_part_of_nothing_readable_is_an_empty_table(run: Path, tmp_path: Path) -> None:
    photo_folder(tmp_path / "photos", 8)
    for i in range(4):
        (tmp_path / "photos" / "dogs" / f"x{i}.png").write_bytes(b"no image")
    out = make(run, tmp_path / "photos", tmp_path / "out", part_images=4)
    assert [parquet.read_metadata(out / name).num_rows for name in names(range(3))] == [4, 4, 0]
    assert dataset.dataset(out).to_table().num_rows == 8


def test_images_of_all_sizes_and_without_labels(run: Path, tmp_path: Path) -> None:
    photo_folder(tmp_path / "photos", 10)
    photo_folder(tmp_path / "photos" / "more", 10, side=90)
    single = belvedere.embed(run, tmp_path / "photos", device="cpu")
    table = dataset.dataset(make(run, tmp_path / "photos", tmp_path / "out", part_images=7)).to_table()
    np.testing.assert_allclose(vectors(table), single, atol=1e-5)
    array = dataset.dataset(make(run, tiles(10, (32, 32)), tmp_path / "array")).to_table()
    assert array["label"].to_pylist() == [""] * 10
    assert array["path"].to_pylist() == [f"{i:07}" for i in range(10)]


def test_deep_images_are_scaled_as_one_set(run: Path, tmp_path: Path) -> None:
    """The brightest image decides the depth, and it lies in another part."""
    grey = np.repeat(tiles(30, (32, 32))[..., :1].astype(np.uint16), 3, axis=3)
    grey[25] *= 16  # 12 bits
    single = belvedere.embed(run, grey, device="cpu")
    table = dataset.dataset(make(run, grey, tmp_path / "out", part_images=8)).to_table()
    np.testing.assert_allclose(vectors(table), single, atol=1e-5)


def test_a_name_that_is_no_text_is_written_as_far_as_it_is(run: Path, tmp_path: Path) -> None:
    photo_folder(tmp_path / "photos", 4)
    (tmp_path / "photos" / "cats" / "001.png").rename(tmp_path / "photos" / "cats" / os.fsdecode(b"\xe9t\xe9.png"))
    table = dataset.dataset(make(run, tmp_path / "photos", tmp_path / "out")).to_table()
    assert "cats/?t?.png" in table["path"].to_pylist()
    belvedere.embed(run, tmp_path / "photos", out=tmp_path / "x.csv", device="cpu")
    assert b"cats/\xe9t\xe9.png," in (tmp_path / "x.csv").read_bytes()


# --- again ------------------------------------------------------------------------------------------------------------


def test_again_only_what_is_missing_or_damaged_is_made(
    run: Path, photos: Path, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = make(run, photos, tmp_path / "out")
    assert files(out) == files(whole)
    (out / "part-00001.parquet").unlink()
    os.truncate(out / "part-00003.parquet", 900)
    overwrite_footer(out / "part-00004.parquet")
    kept = {name: (out / name).stat().st_mtime_ns for name in ("part-00000.parquet", "part-00002.parquet")}
    capfd.readouterr()
    make(run, photos, out)
    said = capfd.readouterr().out.splitlines()
    assert said[0] == f"{out}: 2 of 5 parts are there"
    assert [line.partition(":")[0] for line in said[1:4]] == [str(out / f"part-0000{k}.parquet") for k in (1, 3, 4)]
    assert said[4] == f"95 vectors of 32 numbers in 5 parts: {out} (2 images set aside)"
    assert files(out) == files(whole)
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in kept.items())
    make(run, photos, out)
    assert capfd.readouterr().out.splitlines() == [f"{out}: 5 of 5 parts are there", said[4]]


def overwrite_footer(path: Path) -> None:
    """Put bytes that mean nothing where a Parquet file describes itself, between its magic words."""
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    content[-8 - length : -8] = b"\xff" * length
    path.write_bytes(content)


@pytest.fixture
def three_parts(run: Path, photos: Path, tmp_path: Path) -> Path:
    return make(run, photos, tmp_path / "out", part_images=40)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda run, photos: {"part_images": 20}, "was written with --part-images 40"),
        (lambda run, photos: {"reading": "avg"}, "is of another run, or of another reading"),
        (lambda run, photos: {"data": photos / "cats"}, "is of other images"),
    ],
    ids=["size", "reading", "images"],
)
def test_parts_of_something_else_are_refused(
    run: Path, photos: Path, three_parts: Path, change: Callable[[Path, Path], dict[str, Any]], why: str
) -> None:
    before = files(three_parts)
    words = {"data": photos, "part_images": 40, **change(run, photos)}
    with pytest.raises(UserError) as error:
        make(run, words.pop("data"), three_parts, **words)
    assert str(error.value) == f"--out {three_parts}: part-00000.parquet {why}; choose an empty or new folder"
    assert files(three_parts) == before


def test_parts_of_another_run_or_with_other_labels_are_refused(
    run: Path, photos: Path, three_parts: Path, tmp_path: Path
) -> None:
    other = belvedere.pretrain(photos, "simclr", out=tmp_path / "other", settings={**TINY, "train.seed": 1})
    with pytest.raises(UserError, match=r"part-00000.parquet is of another run, or of another reading; "):
        make(other, photos, three_parts, part_images=40)
    images, labels = tiles(10, (32, 32)), np.arange(10) % 2
    file = tmp_path / "x.npz"
    np.savez(file, images=images, labels=labels)
    stamp = file.stat().st_mtime_ns
    out = make(run, file, tmp_path / "labelled")
    np.savez(file, images=images, labels=labels[::-1])
    os.utime(file, ns=(stamp, stamp))
    with pytest.raises(UserError, match=r"part-00000.parquet is of other images; "):
        make(run, file, out)


def test_a_folder_with_other_files_is_refused(run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"^--out .*: holds other files \(notes.txt\); choose an empty or new folder$"):
        make(run, photos, tmp_path)
    (tmp_path / "notes.txt").unlink()
    for note in (None, {"belvedere": "no JSON"}, {"belvedere": "[1]"}):
        table = pyarrow.table({"x": [1]}).replace_schema_metadata(note)
        parquet.write_table(table, tmp_path / "part-00000.parquet")
        with pytest.raises(UserError, match=r"part-00000.parquet was not written by this version of belvedere"):
            make(run, photos, tmp_path)


def test_a_part_under_the_name_of_another_is_refused(run: Path, photos: Path, tmp_path: Path) -> None:
    """A reader of the folder would have its images twice."""
    out = make(run, photos, tmp_path / "out")
    shutil.copyfile(out / "part-00001.parquet", out / "part-00007.parquet")
    with pytest.raises(
        UserError, match=r"part-00007.parquet is part 1 under another name; choose an empty or new folder"
    ):
        make(run, photos, out)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_words_that_do_not_fit_are_one_line(run: Path) -> None:
    told = without_torch("embed", str(run), "x", "--out", "x.npz", "--part-images", "5").refusal()
    assert told == "--part-images: only a folder has parts, --out FOLDER/"
    told = without_torch("embed", str(run), "x", "--out", "vectors").refusal()
    assert told == "--out vectors: the ending must be .npz, .parquet or .csv, or / for a folder of parts"


def test_a_file_in_place_of_the_folder(run: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"out: cannot be written \(File exists\)"):
        make(run, photos, tmp_path / "out")


def test_without_pyarrow(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs an extra: pip install "belvedere\[parquet\]"'):
        make(run, photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mostly_broken_images_are_told_at_the_end(run: Path, tmp_path: Path) -> None:
    photo_folder(tmp_path / "photos", 4)
    for i in range(6):
        (tmp_path / "photos" / "dogs" / f"x{i}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"6 of 10 images cannot be used: 6 x "):
        make(run, tmp_path / "photos", tmp_path / "out")
    assert len((tmp_path / "out" / SKIPPED).read_text().splitlines()) == 7


def test_a_full_disk_keeps_the_parts_before_and_the_same_command_goes_on(
    run: Path, photos: Path, whole: Path, tmp_path: Path
) -> None:
    words = ["embed", run, photos, "--part-images", SIZE, "--device", "cpu", "--out"]
    with mounted(tmp_path / "disk", "size=32k") as disk:
        out = disk / "out"
        said = command(tmp_path, *words, f"{out}/")
        last = said.text.splitlines()[-1]
        assert said.code == 2
        assert last.startswith(f"belvedere: {out}/part-0000")
        assert last.endswith(".parquet: cannot be written (the disk is full); what was there before is kept")
        there = files(out)
        assert 0 < len(there) < PARTS
        assert all(there[name] == (whole / name).read_bytes() for name in there)
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        assert command(tmp_path, *words, out).code == 0
        assert files(out) == files(whole)


# --- processes --------------------------------------------------------------------------------------------------------


def embed(run: Path, photos: Path, out: str, *words: str, launcher: list[str]) -> subprocess.Popen[str]:
    """`belvedere embed` in processes of its own."""
    arguments = ["embed", str(run), str(photos), "--out", str(out), "--device", "cpu", *words]
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def slowly(tmp_path: Path, seconds: float, dies: str = "") -> Path:
    """A script that is `belvedere` and takes so long for a part; process 1 kills itself before part `dies`."""
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, signal, time\n"
        "from belvedere import cli\n"
        "from belvedere.embedding import Parts\n"
        "whole = Parts.make\n"
        "def make(self, k, *rest):\n"
        f"    time.sleep({seconds})\n"
        f"    if str(k) == {dies!r} and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    whole(self, k, *rest)\n"
        "Parts.make = make\n"
        "cli.main()\n"
    )
    return script


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, []], ids=["torchrun", "devices"])
@pytest.mark.parametrize("kind", ["photos", "shards"])
def test_two_processes_write_the_files_of_one(
    run: Path, request: pytest.FixtureRequest, tmp_path: Path, kind: str, launcher: list[str]
) -> None:
    data = request.getfixturevalue(kind)
    whole = make(run, data, tmp_path / "one")
    more = [] if launcher else ["--devices", "2"]
    words = [f"{tmp_path}/out/", "--part-images", str(SIZE), *more]
    job = embed(run, data, *words, launcher=[*launcher, "-m", "belvedere"])
    said, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert files(tmp_path / "out") == files(whole)
    assert "95 vectors of 32 numbers in 5 parts" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["photos", "shards"])
def test_a_killed_job_of_two_is_finished_by_one(
    run: Path, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    photos, out = request.getfixturevalue(kind), tmp_path / "out"
    whole = make(run, photos, tmp_path / "whole")
    script = slowly(tmp_path, 0.7)
    job = embed(run, photos, f"{out}/", "--part-images", str(SIZE), launcher=[*TORCHRUN, str(script)])
    give_up = time.monotonic() + 60
    while not list(out.glob("part-*")) and time.monotonic() < give_up:
        time.sleep(0.02)
    for process in processes_of(str(script)):
        os.kill(process, signal.SIGKILL)
    job.communicate()
    there = [path.name for path in out.glob("part-*")]
    assert 0 < len(there) < PARTS
    (out / ".part-00004.parquet.elsewhere.1").write_bytes(b"half of one")  # what another machine left
    make(run, photos, out)
    found = files(out)
    del found[".part-00004.parquet.elsewhere.1"]
    assert found == files(whole)
    assert dataset.dataset(out).to_table().num_rows == 95


@pytest.mark.slow
def test_when_a_process_dies_torchrun_starts_both_again(run: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    """No store to set: the processes do not meet."""
    script = slowly(tmp_path, 0, dies="3")
    launcher = [*TORCHRUN, "--max-restarts=1", str(script)]
    job = embed(run, photos, f"{tmp_path}/out/", "--part-images", str(SIZE), launcher=launcher)
    said, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert files(tmp_path / "out") == files(whole)
    assert "parts are there" in said


@pytest.mark.slow
def test_the_launcher_says_that_a_process_was_killed(run: Path, photos: Path, whole: Path, tmp_path: Path) -> None:
    out = f"{tmp_path}/out/"
    words = ["--part-images", str(SIZE), "--devices", "2"]
    job = embed(run, photos, out, *words, launcher=["-m", "belvedere"])
    victims = list[int]()
    while not victims and job.poll() is None:
        victims = processes_of(out, "RANK=1")
        time.sleep(0.02)
    os.kill(victims[0], signal.SIGKILL)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 1
    assert errors.splitlines()[-1] == "belvedere: process 1 was ended by SIGKILL, and the others with it"
    assert "Traceback" not in errors
    job = embed(run, photos, out, *words, launcher=["-m", "belvedere"])
    assert job.wait(120) == 0
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.slow
def test_two_processes_write_one_file_together(run: Path, photos: Path, tmp_path: Path) -> None:
    job = embed(run, photos, f"{tmp_path}/two.npz", "--devices", "2", launcher=["-m", "belvedere"])
    said, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert said.count("95 vectors of 32 numbers") == 1
    assert np.array_equal(np.load(tmp_path / "two.npz")["features"], belvedere.embed(run, photos, device="cpu"))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_parts(photos: Path, tmp_path: Path) -> None:
    """Between 2,000 and 20,000 images there are 28 MB of vectors, which nothing but the files holds."""
    settings = {**TINY, "backbone.width": 192, "train.steps": 1}
    run = belvedere.pretrain(photos, "simclr", out=tmp_path / "run", device="cpu", settings=settings)
    np.save(tmp_path / "x.npy", np.resize(tiles(100, (8, 8)), (20_000, 8, 8, 3)))
    script = tmp_path / "measure.py"
    script.write_text(
        "import sys, belvedere\n"
        "from belvedere.embedding import Parts\n"
        "whole = Parts.make\n"
        "def make(*given):\n"
        "    whole(*given)\n"
        "    print('kB', open('/proc/self/status').read().partition('RssAnon:')[2].split()[0])\n"
        "Parts.make = make\n"
        "belvedere.embed_parts(*sys.argv[1:], part_images=1000, reading='cls+avg', device='cpu')\n"
    )
    words = [sys.executable, script, run, tmp_path / "x.npy", tmp_path / "out"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    held = [int(line.split()[1]) * 1024 for line in said if line.startswith("kB")]
    assert len(held) == 20
    assert held[-1] - held[1] < 10e6, held
    assert dataset.dataset(tmp_path / "out").count_rows() == 20_000
