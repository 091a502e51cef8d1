"""The job of many images that is killed and goes on, with some hundreds of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import embedding as benchmark
from tiny import tiles

SCRIPT = Path(benchmark.__file__)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """40 small pictures of two classes."""
    for number, tile in enumerate(tiles(40, (32, 32))):
        path = tmp_path / "pictures" / ("cat" if number % 2 else "dog") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(path)
    return tmp_path / "pictures"


def test_copies_are_distinct_and_the_first_are_the_pictures(pictures: Path, tmp_path: Path) -> None:
    about = benchmark.write_images(pictures / "cat", pictures / "dog", tmp_path / "images", 200)
    assert (about["images"], about["distinct"]) == (200, 40)
    files = sorted((tmp_path / "images").rglob("*.png"))
    assert len({Image.open(file).tobytes() for file in files}) == len(files) == 200
    originals = [Image.open(file).tobytes() for file in sorted(pictures.rglob("*.png"))]
    assert [Image.open(file).tobytes() for file in files if file.stem.endswith("_0")] == originals


def test_costs_grow_with_the_images_and_name_what_limits() -> None:
    found = {
        "memory_bytes": 4e9,
        "data": {"images": 1000, "bytes_an_image": 2000.0},
        "job": {"nothing_left_seconds": 11.0, "images_a_second": 10.0},
        "right": {"bytes_an_image": 800.0},
        "phases": {"seconds_an_image": {"index": 0.001, "embedding": 0.003}, "index_bytes_an_image": 1e6},
    }
    one, ten, thousand = benchmark.costs(found)
    assert one["hours"] == pytest.approx((10 + 1 + 100) / 3600)
    assert ten["hours"] == pytest.approx((10 + 10 + 1000) / 3600)
    assert ten["parquet_bytes"] == 10 * one["parquet_bytes"] == 8e6
    assert (one["bottleneck"], thousand["bottleneck"]) == ("embedding, 75 % of a process' time", "memory for the names")
    assert one["fits_in_memory"]
    assert not thousand["fits_in_memory"]


@pytest.mark.slow
def test_a_killed_job_loses_nothing(shared_data: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- embedding, written by benchmarks/embedding.py -->\n<!-- end of embedding -->\n")
    places = ["--archives", shared_data, "--work", tmp_path / "work", "--out", tmp_path / "x.json", "--page", page]
    words = ["--images", "600", "--part-images", "50", "--steps", "2", "--seed", "3", *map(str, places)]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["job"]["killed"]["before_its_end"]
    assert 0 < found["job"]["killed"]["parts_there"] < found["job"]["parts"] == 12
    right = found["right"]
    assert (right["missing"], right["twice"], right["in_order"], right["sample"]) == (0, 0, True, 600)
    assert right["largest_difference"] < 1e-5
    assert right["spread_of_values"] > 0.1
    assert found["phases"]["equal_bytes"]
    assert "| 600 | " in page.read_text()
