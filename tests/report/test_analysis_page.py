"""`belvedere analyze` on real tiny runs: the page stands alone, shows everything, and mistakes are one line."""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
from pathlib import Path

import pytest
import torch

from newcomer import TINY, Said, belvedere, photo_folder
from tiny import read_metrics

pytestmark = pytest.mark.slow

NAME = "hard <script>alert(1)</script>".replace("/", "-")
SETTINGS = TINY | {"views.locals": 0, "backbone.patch": 8, "monitor.log_every": 1}


def pretrained(place: Path, name: str, views: str, **more: object) -> Path:
    words = [f"{key}={value}" for key, value in (SETTINGS | more).items()]
    said = belvedere(place, "pretrain", place / "photos", "--views", views, "--out", place / name, *words)
    assert said.code == 0, said.text
    return place / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs and two finished runs on them: hard views around learned ones, and random ones."""
    folder = tmp_path_factory.mktemp("place")
    photo_folder(folder / "photos")
    pretrained(folder, NAME, "hard", **{"views.inner": "learned", "views.warmup": 0, "views.freeze": 0})
    pretrained(folder, "random", "random")
    return folder


def analyzed(place: Path, *arguments: object) -> tuple[Said, str]:
    """What the command said, and the page."""
    said = belvedere(place, "analyze", *arguments, "--out", place / "page.html")
    assert said.code == 0, said.text
    return said, (place / "page.html").read_text()


def alone(page: str) -> None:
    """Nothing is fetched, nothing runs."""
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    for plot in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page):
        assert not re.findall(r'href="(?!#)', base64.b64decode(plot).decode())


def table_of(page: str, name: str) -> list[dict[str, str]]:
    """A CSV that the page holds."""
    (content,) = re.findall(rf'download="{name}" href="data:text/csv;base64,([^"]+)"', page)
    return list(csv.DictReader(io.StringIO(base64.b64decode(content).decode())))


def test_hard_views_beside_another_run(place: Path) -> None:
    said, page = analyzed(place, place / NAME, place / "random", "--images", 24)
    assert said.text.strip().endswith("page.html")
    alone(page)
    anchors = re.findall(r'<section id="([a-z]+)">', page)
    assert anchors == ["training", "choices", "cost", "candidates", "learned", "comparison"]
    for title in (
        "Accuracy for its time",
        "k-NN over seconds of wall-clock",
        "Overlap of the two crops (IoU)",
        "Overlap of the chosen pair and of a random one",
        "How the chosen pair differs from the others",
        "What makes a pair hard",
        "Can the choice be foretold without the network?",
        "How often each candidate is in the chosen pair",
        "Hardness for its price",
        "Hardness that is kept",
        "Attention of both runs",
    ):
        assert title in page, title
    assert "24 of 48 images, the run&#x27;s own" in page
    assert "Views of hard &lt;script&gt;" in page
    assert {row["run"] for row in table_of(page, "comparison.csv")} == {NAME, "random"}


def test_the_numbers_of_the_gallery_are_the_choices(place: Path) -> None:
    rows = table_of(analyzed(place, place / NAME, "--images", 24)[1], "candidates.csv")
    assert len(rows) == 24 * 6
    by_image: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_image.setdefault(row["image"], []).append(row)
    assert len(by_image) == 24
    for pairs in by_image.values():
        losses = [float(row["loss"]) for row in pairs]
        assert [row["chosen"] for row in pairs].index("1") == losses.index(max(losses))
        assert sum(row["chosen"] == "1" for row in pairs) == 1


def test_what_hard_views_would_choose_in_a_random_run(place: Path) -> None:
    page = analyzed(place, place / "random", "--images", 16)[1]
    assert "the policy random neither chooses nor learns" in page
    assert "shown 4 candidate views of each image, drawn by the policy random" in page
    assert "their 6 pairs" in page


def test_learned_views_from_easy_to_hard(place: Path) -> None:
    page = analyzed(place, place / NAME, "--images", 24)[1]
    alone(page)
    assert "Probability of each operation" in page
    assert "Views from the easiest to recognise to the hardest" in page
    rows = table_of(page, "learned.csv")
    assert len({row["image"] for row in rows}) == 24
    chance = torch.log(torch.tensor(24.0))
    assert all(abs(float(row["loss"]) / float(chance) - float(row["share_of_chance"])) < 1e-4 for row in rows)


def test_analyzing_leaves_the_run_as_it_was(place: Path) -> None:
    run = place / NAME
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file() and file.name != "analysis.html"}
    assert belvedere(place, "analyze", run, "--images", 16).code == 0
    after = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file() and file.name != "analysis.html"}
    assert after == before
    assert (run / "analysis.html").is_file()
    assert read_metrics(run)


def test_the_same_page_twice(place: Path) -> None:
    def without_time(page: str) -> str:
        return re.sub(r"<footer>.*?</footer>", "", page)

    first, second = (analyzed(place, place / NAME, "--images", 16)[1] for _ in range(2))
    assert without_time(first) == without_time(second)


def test_other_images_are_said_to_be_others(place: Path, tmp_path: Path) -> None:
    photo_folder(tmp_path / "others", count=20, side=48)
    page = analyzed(place, place / NAME, "--data", tmp_path / "others")[1]
    assert "20 of 20 images, not the run&#x27;s own" in page


def test_mistakes_are_one_line(place: Path, tmp_path: Path) -> None:
    assert "is no run folder" in belvedere(place, "analyze", tmp_path).refusal()
    assert "is no run folder" in belvedere(place, "analyze", place / NAME, tmp_path).refusal()
    moved = tmp_path / "moved"
    shutil.copytree(place / NAME, moved)
    text = (moved / "config.yaml").read_text().replace(str(place / "photos"), "/nowhere/photos")
    (moved / "config.yaml").write_text(text)
    assert "say where they are with --data" in belvedere(place, "analyze", moved).refusal()
    (moved / "checkpoint.pt").unlink()
    refusal = belvedere(place, "analyze", moved, "--data", place / "photos").refusal()
    assert "checkpoint" in refusal


def test_an_objective_without_pairs_is_refused(place: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "alone.py"
    plugin.write_text(
        "from belvedere.objectives.simclr import SimClr\n\n\n"
        'class Alone(SimClr):\n    """No pairs."""\n\n    has_pairs = False\n'
    )
    run = tmp_path / "run"
    shutil.copytree(place / "random", run)
    text = (run / "config.yaml").read_text().replace("objective.name: simclr", "objective.name: alone")
    (run / "config.yaml").write_text(text)
    refusal = belvedere(place, "analyze", run, "--plugin", plugin).refusal()
    assert "objective alone has no pairs of views" in refusal
    assert "`belvedere report` shows what a policy learned" in refusal
