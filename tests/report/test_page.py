"""The page: self-contained, safe with hostile names, sensible whatever is missing, honest in its first sentence."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from belvedere import config as configuration
from belvedere.errors import UserError
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.measure.knn import half_width
from belvedere.report.commands import commands, given
from belvedere.report.page import write_report
from belvedere.report.pictures import draw_pictures
from belvedere.report.record import read_record
from belvedere.report.verdict import answer

HOSTILE = "<script>alert(1)</script>\"'&"


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, file: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def add_evaluation(folder: Path, classes: str = "knn") -> None:
    numbers = {"top1": {"value": 61.5, "low": 58.0, "high": 65.0}}
    results = [
        {"protocol": classes, "metrics": {"run": numbers, "pixels": numbers}, "chosen": {"k": {"run": 10}},
         "settings": {"split": f"a tenth {classes}", "reading": "cls"}},
        {"protocol": "linear", "metrics": {}, "chosen": {}, "settings": {"error": f"ValueError: {HOSTILE}"}},
    ]  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps({"results": results, "seconds": {}}))


def add_views(folder: Path) -> None:
    Figure(figsize=(1, 1)).savefig(folder / "views.png")


def test_a_whole_page_needs_nothing_but_itself(
    make_run: Callable[..., Path], make_canvases: Callable[..., Canvases], make_encoder: Callable[..., Encoder]
) -> None:
    folder = make_run()
    add_views(folder)
    add_evaluation(folder)
    draw_pictures(folder, make_encoder(), make_canvases())
    path = write_report(folder)
    page = Page(path)
    assert path == folder / "report.html"
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert all(link.startswith("data:") for link in page.attributes("src"))
    assert all(link.startswith(("data:", "#")) for link in page.attributes("href"))
    assert "script" not in {tag for tag, _ in page.tags}
    anchors = page.attributes("id")
    assert len(anchors) == len(set(anchors))
    assert {link[1:] for link in page.attributes("href") if link.startswith("#")} == set(anchors)
    order = ["health", "curves", "views", "neighbours", "attention", "pca", "spectrum", "evaluation", "settings"]
    assert anchors == [*order, "skipped", "use"]
    for image in (attrs for tag, attrs in page.tags if tag == "img"):
        assert len(image["alt"]) > 20
    for plot in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page.source):
        svg = base64.b64decode(plot).decode()
        assert not re.findall(r'href="(?!#)', svg)
        assert "prefers-color-scheme" in svg


def test_hostile_names_are_text(make_run: Callable[..., Path]) -> None:
    folder = make_run(
        HOSTILE.replace("/", "-"),
        skipped=[(f"photos/{HOSTILE}.jpg", f"broken {HOSTILE}"), ("bytes \udcff.jpg", "not readable")],
        word=HOSTILE,
        why=(HOSTILE,),
        scalars={HOSTILE: 1.0, f"task/{HOSTILE}": 1.0, f"grad/{HOSTILE}": 1.0, "grad/$x": 1.0},
        given={"objective.name": "simclr", "images.labels": f"{HOSTILE}.csv"},
    )
    add_evaluation(folder, HOSTILE)
    (folder / "pictures").mkdir()
    drawn = {"name": "attention", "title": HOSTILE, "skipped": HOSTILE}
    (folder / "pictures" / "pictures.json").write_text(json.dumps({"images": 40, "pictures": [drawn]}))
    page = Page(write_report(folder))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in page.source
    assert page.text.count("<script>alert(1)") >= 8
    assert "bytes" in page.text


@pytest.mark.parametrize("color", ['"><script>alert(1)</script>', "blue", ["green"], None])
def test_a_strangers_colour_is_left_out(make_run: Callable[..., Path], color: Any) -> None:
    folder = make_run(color=color)
    page = Page(write_report(folder))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "metrics.jsonl is damaged" in page.text


def test_lines_that_no_run_writes_are_left_out(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    before = read_record(folder)
    look = {"step": 60, "look": {"knn": 99}, "health": "healthy", "color": "green"}
    lines = [5, [], {"loss": 1}, {"step": "1"}, {**look, "why": []}, {**look, "why": [1]}, {**look, "judged": 1}]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)
        file.write("[" * 100_000 + "\n")
    after = read_record(folder)
    assert (after.steps, after.looks) == (before.steps, before.looks)


def test_a_strangers_pictures_are_of_its_own_folder(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run()
    add_views(folder)
    secret = tmp_path / "secret"
    secret.mkdir()
    (folder / "views.png").rename(secret / "own.png")
    (secret / "own.csv").write_text("secret")
    (folder / "views.png").symlink_to(secret / "own.png")
    for place, key in ((folder / "pictures", "pictures"), (folder / "evaluation", "knn")):
        place.mkdir()
        (place / "link.png").symlink_to(secret / "own.png")
        (place / "whole.png").write_bytes((secret / "own.png").read_bytes())
        names = [str(secret / "own"), "../../secret/own", "link", "cut\0"]
        drawn = [{"name": "a", "title": "a", "file": f"{name}.png", "table": f"{name}.csv"} for name in names]
        drawn += [{"name": "a", "title": "a", "file": "whole.png", "table": f"{secret}/own.csv"}]
        (place / "pictures.json").write_text(json.dumps({"images": {}, key: drawn}))
    add_evaluation(folder)
    page = Page(write_report(folder))
    # One picture in each place is the folder's own.
    assert sum(link.startswith("data:image/png") for link in page.attributes("src")) == 2
    assert page.text.count("Not drawn") == 8
    assert base64.b64encode(b"secret").decode() not in page.source
    assert read_record(folder).images is None


def test_a_list_of_pictures_that_is_none(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    (folder / "pictures").mkdir()
    for drawn in (5, [5], [{"name": "a", "title": 5}], [{"name": "a", "title": "a", "file": None}], [{"x": "a"}]):
        (folder / "pictures" / "pictures.json").write_text(json.dumps({"pictures": drawn}))
        assert "draw the pictures again" in Page(write_report(folder)).text


def test_every_sentence_of_the_health_is_told(make_run: Callable[..., Path]) -> None:
    why = ("mean_cosine is 0.85 (above 0.8): narrow.", "head_std is 0.05 (below 0.1): constant.")
    folder = make_run(word="narrow cone", color="red", why=why)
    page = Page(write_report(folder))
    assert all(sentence in page.text for sentence in why)
    assert read_record(folder).looks[-1].color == "red"
    amber = make_run("amber", word="narrow cone", color="amber", why=why[:1])
    assert read_record(amber).looks[-1].color == "amber"


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ({"done": 30}, "This run is not finished: 30 of 60 steps"),
        ({"done": 0, "looks": False, "model": False}, "nothing was measured yet"),
        ({"model": False}, "not written yet"),
        ({"looks": False}, "nothing was measured yet"),
        ({"knn": None}, "there are no labels to say whether it pays"),
    ],
)
def test_what_is_missing_is_said_and_no_error(
    make_run: Callable[..., Path], missing: dict[str, Any], told: str
) -> None:
    page = Page(write_report(make_run(**missing)))
    assert told in page.text
    assert "Settings" in page.text


def test_a_folder_with_nothing_but_its_settings(make_run: Callable[..., Path]) -> None:
    folder = make_run(model=False)
    for name in ("metrics.jsonl", "skipped.csv"):
        (folder / name).unlink()
    assert "0 of 60 steps" in Page(write_report(folder)).text


def test_a_model_is_only_offered_where_there_is_one(make_run: Callable[..., Path]) -> None:
    assert "belvedere.load" in Page(write_report(make_run())).text
    assert "belvedere.load" not in Page(write_report(make_run("young", model=False))).text


def test_damaged_files_are_named(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    (folder / "evaluation.json").write_text("{")
    (folder / "model.safetensors").write_bytes(b"nothing")
    text = Page(write_report(folder)).text
    assert "evaluation.json is damaged" in text
    assert "model.safetensors is damaged" in text


def test_a_line_that_a_kill_cut_short_and_losses_that_are_not_finite(make_run: Callable[..., Path]) -> None:
    folder = make_run(done=30)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "loss": null, "lr": 0.1}\n{"step": 31, "lo')
    record = read_record(folder)
    assert record.done == 31
    assert len(record.of_steps("loss")) == 30
    write_report(folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("config.yaml")):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("knn", "settings", "words"),
    [
        (71.2, {}, "raw pixels 42.0 %, untrained 35.1 %: pretraining pays"),
        (30.0, {}, "pretraining did not pay, raw pixels do better"),
        (30.0, {"done": 30}, "pretraining does not pay so far, raw pixels do better"),
        (42.5, {}, "no clear gain over raw pixels"),
        (71.2, {"start": 60.0}, "untrained 35.1 %, starting weights 60.0 %: pretraining pays"),
        (71.2, {"start": 80.0}, "pretraining did not pay, the weights it started from do better"),
        (71.2, {"start": 71.0}, "no clear gain over the weights it started from"),
    ],
)
def test_the_first_sentence_is_honest(
    make_run: Callable[..., Path], knn: float, settings: dict[str, Any], words: str
) -> None:
    found = answer(read_record(make_run(knn=knn, **settings)))
    assert words in found.sentence
    assert (found.color == "green") == (words.endswith("pays"))


def test_the_best_look_counts_where_its_weights_are_the_model(make_run: Callable[..., Path]) -> None:
    """The first look of the run is at 35.1 %, the last at 20 %."""
    assert read_record(make_run("last", knn=20.0)).knn == 20.0
    assert read_record(make_run("best", knn=20.0, given={"health.stop_below_start": True})).knn == 35.1


def test_interval_of_an_accuracy() -> None:
    # 1.96 * sqrt(.5 * .5 / 100) = .098.
    assert half_width(50, 100) == pytest.approx(9.8)
    assert half_width(50, 10_000) == pytest.approx(0.98)


def test_the_command_gives_the_same_settings_again(make_run: Callable[..., Path]) -> None:
    asked = {
        "views.blur_p": [0.1, 0.2, 0.3],
        "train.compile": True,
        "train.minutes": 2.5,
        "images.labels": "a b;$(x).csv",
    }
    record = read_record(make_run(given=asked))
    words = shlex.split(commands(record)[0][1])
    assert words[:5] == ["belvedere", "pretrain", "DATA", "--recipe", "simclr"]
    flag = words.index("--minutes")
    assert float(words[flag + 1]) == 2.5
    settings = [word for word in words[5:] if "=" in word]
    again = {**configuration.parse_overrides(settings), "train.minutes": float(words[flag + 1])}
    assert again == given(record) == {"train.batch": 16, **asked}
    assert configuration.resolve("simclr", again).config.views.blur_p == (0.1, 0.2, 0.3)


def test_settings_with_reasons_come_first(make_run: Callable[..., Path]) -> None:
    text = Page(write_report(make_run())).text
    assert text.index("2 minutes at 2 s a step, measured") < text.index("from the recipe and defaults")
    assert text.index("from the recipe and defaults") < text.index("paper.lr_rule")


def test_spikes_survive_the_thinning_of_long_curves() -> None:
    from belvedere.report.plots import MOST_POINTS, _thin

    y = np.ones(50_000)
    y[31_234] = 9
    x, thinned = _thin(np.arange(50_000.0), y)
    assert len(x) <= MOST_POINTS
    assert x[thinned == 9].tolist() == [31_234]


def test_a_column_stands_below_its_name(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    add_evaluation(folder)
    (table,) = re.findall(r"<h3>k-NN</h3>.*?<table[^>]*>(.*?)</table>", write_report(folder).read_text(), re.S)
    head, *rows = re.findall(r"<tr.*?</tr>", table, re.S)
    assert [row.count("<td") for row in rows] == [head.count("<th")] * 2
    assert re.findall(r"<th>(.*?)</th>", head) == ["", "top-1, %"]


def test_verdicts_and_pictures_of_protocols_stand_with_them(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    add_evaluation(folder)
    evaluation = json.loads((folder / "evaluation.json").read_text()) | {"verdict": [f"It gains 3 points {HOSTILE}."]}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "evaluation").mkdir()
    Figure(figsize=(1, 1)).savefig(folder / "evaluation" / "confusion.webp")
    drawn = {"knn": [{"name": "confusion", "title": "t", "caption": "who is called whom", "file": "confusion.webp"}]}
    (folder / "evaluation" / "pictures.json").write_text(json.dumps(drawn))
    text = write_report(folder).read_text()
    assert "It gains 3 points" in text
    assert HOSTILE not in text
    assert text.index("<h3>k-NN</h3>") < text.index("who is called whom") < text.index("<h3>Linear probe</h3>")
