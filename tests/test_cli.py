"""The command line as a newcomer meets it: help, wrong words, and every command on a real run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from belvedere import __version__, config
from belvedere.cli import app
from newcomer import belvedere, finished_run, without_torch

COMMANDS = [
    "analyze",
    "check",
    "compare",
    "demo",
    "embed",
    "evaluate",
    "export",
    "fidelity",
    "generate",
    "predict",
    "pretrain",
    "profile",
    "recipes",
    "report",
    "sample",
    "views",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` and a finished run `run` on them."""
    place = tmp_path_factory.mktemp("newcomer")
    (place / "pretrain.txt").write_text(finished_run(place))
    return place


def test_all_commands_are_there() -> None:
    assert sorted(app.commands) == COMMANDS


@pytest.mark.parametrize("arguments", [(), *((command,) for command in COMMANDS), ("recipes", "show")])
def test_help_needs_no_torch(arguments: tuple[str, ...]) -> None:
    said = without_torch(*arguments, "--help")
    assert said.code == 0
    assert said.text.startswith("Usage: belvedere")
    # A summary that is cut off tells a newcomer nothing.
    assert "..." not in said.text.replace("[ARGS]...", "").replace("[KEY=VALUE]...", "")


def test_plain_commands_need_no_torch() -> None:
    listed = without_torch("recipes")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.text.splitlines()] == config.recipe_names()
    assert without_torch("--version").text.split() == ["belvedere,", "version", __version__]
    nothing = without_torch()
    assert nothing.code == 2
    assert "Commands:" in nothing.text


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import belvedere, belvedere.config, belvedere.plugins, belvedere.cli, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--recipe", "dyno"], "unknown recipe 'dyno': did you mean 'dino'?"),
        (["--recipe", "nope.yaml"], "--recipe nope.yaml: there is no such file"),
        (["--objective", "dinno"], "unknown objective 'dinno': did you mean 'dino'?"),
        (["--views", "randm"], "unknown policy 'randm': did you mean 'random'?"),
        (["train.lrr=1"], "unknown key 'train.lrr': did you mean 'train.lr'?"),
        (["--epochs", "3", "--minutes", "4"], "give one budget, not both --epochs and --minutes"),
        (["--epochs", "3", "train.steps=4"], "give one budget, not both --epochs and train.steps"),
        (["--epochs", "many"], "invalid value for '--epochs': 'many' is not a valid float"),
        (["--epochs", "-1"], "train.epochs: must be greater than 0 or 'auto' (given: -1.0)"),
        (["--minutes", "0"], "train.minutes: must be greater than 0 (given: 0.0)"),
        (["train.batch=0"], "train.batch: must be at least 1 or 'auto' (given: 0)"),
        (["train.batch=many"], "train.batch: must be a whole number or 'auto' (given: 'many')"),
        (["b.jpg"], "'b.jpg' is no section.key=value (put a glob in quotes: 'photos/*.jpg')"),
        (["--device", "gpu"], "invalid value for '--device': 'gpu' is not one of 'auto', 'cpu', 'cuda', 'mps'"),
        (["--plugin", "nope.py"], "--plugin nope.py: there is no such file"),
    ],
)
def test_a_wrong_word_is_one_line_without_torch(words: list[str], told: str) -> None:
    assert without_torch("pretrain", "photos", *words).refusal() == told


def test_other_commands_refuse_without_torch(tmp_path: Path) -> None:
    # click's words, which its versions put differently.
    assert without_torch("pretrian", "x").refusal().startswith("no such command 'pretrian'")
    option = without_torch("pretrain", "photos", "--bacbone", "x").refusal()
    assert option.startswith("no such option")
    assert "--backbone" in option
    assert without_torch("pretrain").refusal() == "missing argument 'DATA'"
    assert without_torch("recipes", "show", "dno").refusal().endswith("did you mean 'dino'?")
    assert without_torch("views", "photos", "--out", "v.foo").refusal().endswith("must be .png, .pdf or .svg")
    assert without_torch("embed", str(tmp_path), "x", "--out", "a.txt").refusal().endswith("/ for a folder of parts")
    assert (
        "unknown protocol 'kn': did you mean 'knn'?"
        in without_torch("evaluate", str(tmp_path), "x", "--protocol", "kn").refusal()
    )
    for command in (
        ["evaluate", str(tmp_path), "x"],
        ["report", str(tmp_path)],
        ["export", str(tmp_path), "--out", "y"],
    ):
        assert "is no run folder (it has no config.yaml)" in without_torch(*command).refusal()


def test_unknown_task_names_the_word() -> None:
    assert without_torch("pretrain", "photos", "tasks=[nope]").refusal().startswith("unknown task 'nope': ")


@pytest.mark.slow
def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m belvedere recipes show dino | head -1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("# Resolved configuration")
    assert done.stderr == ""


def test_pretrain_writes_what_it_says(place: Path) -> None:
    said = (place / "pretrain.txt").read_text()
    run = place / "run"
    wanted = {"model.safetensors", "config.json", "checkpoint.pt", "config.yaml", "metrics.jsonl", "skipped.csv"}
    assert wanted | {"views.png", "report.html"} <= {file.name for file in run.iterdir()}
    assert "48 images (0 set aside), labels: first folder level" in said
    assert f"model:  {run / 'model.safetensors'}" in said
    assert f"report: {run / 'report.html'}" in said
    assert "Mixed Precision" not in said
    # Key, value and origin stand in columns.
    rows = [line for line in said.splitlines() if line.startswith("  ")]
    stored = config.from_yaml(run / "config.yaml")
    column = rows[0].index(stored.origin["views.size"])
    for row in rows:
        key = row.split()[0]
        assert row[column:] == stored.origin[key]
        assert row[33:column].strip() == str(config.flatten(stored.config)[key])


def test_the_budget_that_counted_is_the_one_recorded(place: Path) -> None:
    flat = config.flatten(config.from_yaml(place / "run" / "config.yaml").config)
    assert (flat["train.steps"], flat["train.epochs"], flat["train.minutes"]) == (4, None, None)


def test_embed_evaluate_export_report_views_check(place: Path) -> None:
    run, photos = place / "run", place / "photos"
    embedded = belvedere(place, "embed", run, photos, "--out", place / "new" / "vectors.csv")
    assert embedded.code == 0, embedded.text
    assert f"48 vectors of 32 numbers: {place / 'new' / 'vectors.csv'} (0 images set aside)" in embedded.text

    evaluated = belvedere(place, "evaluate", run, photos)
    assert evaluated.code == 0, evaluated.text
    assert "percent [95 % interval]" in evaluated.text
    for name in ("run", "untrained", "pixels", "majority"):
        assert f"knn  {name}" in evaluated.text
    assert (run / "evaluation.json").is_file()

    assert belvedere(place, "export", run, "--out", place / "exported").code == 0
    assert {file.name for file in (place / "exported").iterdir()} == {"README.md", "config.json", "model.safetensors"}

    before = (run / "report.html").read_bytes()
    assert belvedere(place, "report", run).code == 0
    assert (run / "report.html").read_bytes() != before  # it shows the evaluation now

    assert belvedere(place, "views", photos, "--out", place / "views.png", "--images", 2).code == 0
    assert (place / "views.png").is_file()

    checked = belvedere(place, "check", photos)
    assert checked.code == 0
    assert f"{photos}: 48 usable images, 0 set aside" in checked.text
    assert "2 classes from the first folder level" in checked.text


def test_resume_extends_a_run_and_refuses_to_become_another(place: Path) -> None:
    run, photos = place / "run", place / "photos"
    again = ["pretrain", photos, "--out", run, "--resume"]
    longer = belvedere(place, *again, "train.steps=6")
    assert longer.code == 0, longer.text
    assert f"{run}: continues at step 4 of 6 instead of 4; the schedules are planned anew" in longer.text

    config_before = (run / "config.yaml").read_bytes()
    shorter = belvedere(place, *again, "train.steps=5").refusal()
    assert shorter == f"--resume: {run} is at step 6 already, the budget ends at step 5"
    other = belvedere(place, *again, "train.batch=16").refusal()
    assert other == "--resume: train.batch is 8 in this run and cannot become 16; start a new run with --out"
    recipe = belvedere(place, *again, "--recipe", "dino").refusal()
    assert recipe == f"--resume: {run} is a run of recipe simclr, not of dino"
    nameless = belvedere(place, "pretrain", photos, "--resume").refusal()
    assert nameless == "--resume: say which run with --out RUN"
    assert (run / "config.yaml").read_bytes() == config_before


def test_recipes_show_derives_from_data(place: Path) -> None:
    said = belvedere(place, "recipes", "show", "simclr", place / "photos", "--epochs", 4, "train.lr=0.5")
    assert said.code == 0, said.text
    lines = {line.split(":")[0]: line for line in said.text.splitlines() if not line.startswith(("#", " "))}
    assert lines["train.lr"].split() == ["train.lr:", "0.5", "#", "command", "line"]
    assert lines["train.epochs"].endswith("# command line")
    assert lines["train.weight_decay"].endswith("# recipe simclr")
    assert lines["images.mean"].endswith("# measured")
    assert [key for key, line in lines.items() if line.split("#")[0].split()[-1] == "auto"] == ["images.labels"]


def test_recipes_show_says_why_a_value_is_open(place: Path) -> None:
    said = belvedere(place, "recipes", "show", "dino", place / "photos", "train.minutes=1")
    open_lines = [line for line in said.text.splitlines() if ": auto " in line and "images.labels" not in line]
    assert any(line.startswith("train.steps") for line in open_lines)
    assert all("known when a run has measured how many steps fit the minutes" in line for line in open_lines)
