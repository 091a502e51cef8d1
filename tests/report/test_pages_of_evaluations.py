"""Pages with everything that an evaluation finds: of one run and of two, and how wide they are on a phone."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from belvedere.evaluate.compare import compare_runs
from belvedere.evaluate.contract import EvalData, Result
from belvedere.evaluate.records import write_results
from belvedere.evaluate.suite import Given, prepare
from belvedere.report.comparison import render
from belvedere.report.drawing import LARGEST
from belvedere.report.page import write_page, write_report
from belvedere.report.protocols import draw_results
from belvedere.report.protocols.ood import threshold

Make = Callable[..., Any]
PHONE = 390
PROTOCOLS = ("knn", "logistic", "fewshot", "retrieval", "cluster", "duplicates", "map", "corruption", "ood", "shift")


@pytest.fixture
def evaluated(make_run: Make, make_canvases: Make, make_encoder: Make) -> Callable[..., tuple[Path, EvalData, Any]]:
    """A run's folder that an encoder was evaluated in, with its data and results by protocol."""

    def make(
        name: str, protocols: tuple[str, ...], blur: float = 6.0, paper: bool = False, **encoder: Any
    ) -> tuple[Path, EvalData, dict[str, Result]]:
        canvases = make_canvases()
        options: dict[str, dict[str, Any]] = {"fewshot": {"draws": 2}, "corruption": {"blur": [1.0, blur]}}
        given = Given(
            canvases.subset(np.arange(0, 40, 2)),
            canvases.subset(np.arange(1, 40, 2)),
            other=make_canvases(labels=False).subset(np.arange(3, 30)),
            options={name: of for name, of in options.items() if name in protocols},
            floors=("pixels",),
            paper=paper,
        )
        prepared = prepare(make_encoder(**encoder), given, protocols, "cpu", None)
        results = prepared.run()
        assert not [one.settings["error"] for one in results if "error" in one.settings]
        folder: Path = make_run(name)
        write_results(results, folder / "evaluation.json")
        draw_results(folder / "evaluation", results, prepared.data)
        return folder, prepared.data, {one.protocol: one for one in results}

    return make


def read(folder: Path, table: str) -> list[dict[str, str]]:
    with (folder / "evaluation" / table).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_foreign_images_are_drawn_with_their_scores(evaluated: Make) -> None:
    folder, data, results = evaluated("run", ("ood", "shift"))
    drawn = json.loads((folder / "evaluation" / "pictures.json").read_text())
    pictures = {picture["name"]: picture for of in drawn.values() for picture in of}
    assert list(pictures) == ["ood", "ood_images", "shift", "shift_images"]
    for picture in pictures.values():
        assert (folder / "evaluation" / picture["file"]).stat().st_size <= LARGEST
        assert min(len(picture["caption"]), len(picture["alt"])) > 60
    bins = read(folder, "ood.csv")
    scores = results["ood"].draws["scores"]["run"]
    assert {row["score"] for row in bins} == set(scores)
    for name, (inside, outside) in scores.items():
        own = [row for row in bins if row["score"] == name]
        for kind in ("share_of_known", "share_of_foreign"):
            assert sum(float(row[kind]) for row in own) == pytest.approx(1, abs=1e-4)
        line = threshold(outside)
        assert (outside >= line).mean() >= 0.95 > (outside > line).mean()
        assert 100 * (inside >= line).mean() == pytest.approx(results["ood"].metrics["run"][f"{name}_fpr95"].value)
    images = read(folder, "ood_images.csv")
    assert [row["kind"] for row in images] == ["known"] * 20 + ["foreign"] * 27
    odd = data.test.names[int(np.argmax(scores["knn"][0]))]
    assert images[0]["image"] == odd
    bars = {(row["encoder"], row["metric"]): float(row["value"]) for row in read(folder, "shift.csv")}
    for subject, numbers in results["shift"].metrics.items():
        assert bars[subject, "frechet"] == pytest.approx(numbers["frechet"].value, rel=1e-5)
    listed = [float(row["distance"]) for row in read(folder, "shift_images.csv")]
    assert listed == sorted(listed, reverse=True)
    assert len(listed) == 27


def test_few_foreign_images_stand_in_one_row_only(evaluated: Make, tmp_path: Path) -> None:
    _, data, results = evaluated("run", ("shift",))
    result = replace(results["shift"], draws={name: values[:3] for name, values in results["shift"].draws.items()})
    draw_results(tmp_path / "few", [result], data)
    (_, images) = json.loads((tmp_path / "few" / "pictures.json").read_text())["shift"]
    assert images["alt"].startswith("1 images at")


def test_numbers_whose_settings_saw_the_test_images_say_so(evaluated: Make) -> None:
    """k-NN chooses k; few-shot chooses nothing, so it has nothing to say."""
    honest, flattered = (evaluated(name, ("knn", "fewshot"), paper=name == "paper")[0] for name in ("own", "paper"))
    told = "Settings selected on test"
    assert told not in write_report(honest).read_text(encoding="utf-8")
    knn, fewshot = re.split("How many labels are needed", write_report(flattered).read_text(encoding="utf-8"))[:2]
    assert told in knn
    assert told not in fewshot
    page = render(compare_runs([honest, flattered]))
    assert page.count(f"{told} in paper, so the numbers flatter.") == 1


@pytest.mark.slow
def test_two_encoders_differ_in_no_setting_and_share_a_picture(evaluated: Make) -> None:
    deep, _, results = evaluated("deep", PROTOCOLS, depth=3)
    flat, _, _ = evaluated("flat", PROTOCOLS, depth=1)
    found = compare_runs([deep, flat])
    assert found.notices == []
    page = render(found)
    assert "Under corruption" in page
    (section,) = re.findall(r'<section id="corruption">.*?</section>', page)
    told = re.search(r'alt="([^"]+)"', section)
    assert told is not None
    assert "Blur, deep: " in told[1]
    assert "Low contrast, flat: " in told[1]
    (table,) = re.findall(r'download="corruption.csv" href="data:text/csv;base64,([^"]+)"', section)
    rows = list(csv.DictReader(io.StringIO(base64.b64decode(table).decode())))
    values = {(row["encoder"], row["images"]): float(row["top1"]) for row in rows}
    own = results["corruption"].metrics["run"]
    assert values["deep", "blur 6"] == pytest.approx(own["blur2"].value, abs=1e-3)
    assert values["deep", "clean"] == pytest.approx(own["clean"].value, abs=1e-3)
    assert {row["encoder"] for row in rows} == {"deep", "flat", "raw pixels", "majority class"}
    other, _, _ = evaluated("other", ("knn", "corruption"), blur=4.0)
    page = render(compare_runs([deep, other]))
    assert "corruption was measured with blur = [1.0, 4.0] in other" in page
    assert "blur 6" not in page
    (told_now,) = re.findall(r'<section id="corruption">.*?alt="([^"]+)"', page)
    assert "Blur" not in told_now
    assert "Noise, other: " in told_now


@pytest.mark.slow
def test_no_page_is_wider_than_a_phone(evaluated: Make, tmp_path: Path) -> None:
    """In a real browser: what is wide (tables, pictures) scrolls inside itself, the page does not."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        warnings.warn("no Chromium here: the width of pages on a phone was NOT tested", stacklevel=1)
        pytest.skip("needs Chromium")
    long = "a_name_that_is_as_long_as_file_names_of_scanners_are_and_has_no_place_to_break_2026-11-21"
    runs = [evaluated(long, PROTOCOLS)[0], evaluated(f"second_{long}", PROTOCOLS, depth=1)[0]]
    compared = tmp_path / "compare.html"
    write_page(compared, render(compare_runs(runs)))
    for page in (write_report(runs[0]), compared):
        assert width(browser, page) <= PHONE
    # A page that is too wide is noticed.
    wide = tmp_path / "wide.html"
    wide.write_text(compared.read_text().replace("</main>", f"<p>{'n' * 200}</p></main>"))
    assert width(browser, wide) > PHONE


def width(browser: str, page: Path) -> int:
    """Of all that a page shows in a frame as wide as a phone; not every browser's window can be that narrow."""
    frame = page.with_name(f"frame-{page.name}")
    frame.write_text(
        f'<iframe id="f" src="{page.name}" width="{PHONE}" height="800" style="border:0"></iframe><script>'
        'f.onload = () => { document.title = f.contentDocument.documentElement.scrollWidth + "px" }</script>'
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={page.parent / 'browser'}", "--virtual-time-budget=20000", "--dump-dom"]
    shown = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>(\d+)px</title>", shown.stdout)
    assert found is not None, shown.stderr
    return int(found[1])
