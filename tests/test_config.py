"""The configuration: one schema, one precedence, and errors that say what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from belvedere import config, plugins
from belvedere.derive import IMAGENET
from belvedere.errors import UserError
from belvedere.pretrain.compose import settle

# Lists of lists of lists: with a few lines more they would not fit into any memory.
LAUGHS = "train.lr: [&a [1, 1], &b [*a, *a], &c [*b, *b], [*c, *c]]\n"
# Tags for what the text behind them is not, and a number in base 60 beyond every float.
TAGGED = ["!!bool maybe", "!!int ''", "!!float ''", "!!timestamp x", "!!set {a}"]
ENDLESS = "1" + ":0" * 250 + ".5"


def refused(recipe: str = "dino", **given: Any) -> str:
    """What `resolve` says to a setting; dots in keys are written as __."""
    with pytest.raises(UserError) as error:
        config.resolve(recipe, {key.replace("__", "."): value for key, value in given.items()})
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("tran.lr=1", "unknown key 'tran.lr': did you mean 'train.lr'?"),
        ("lr=1", "unknown key 'lr': did you mean 'train.lr'?"),
        ("batch=1", "unknown key 'batch': did you mean 'train.batch'?"),
        ("train.lr.x=1", "unknown key 'train.lr.x': did you mean 'train.lr'?"),
        ("gibberish=1", "unknown key 'gibberish': `belvedere recipes show dino` lists all keys"),
        ("train=3", "train: is a section and holds no value; write its keys as train.KEY"),
        ("train.steps=0", "train.steps: must be at least 1 or 'auto' (given: 0)"),
        ("views.locals=-1", "views.locals: must be at least 0 or 'auto' (given: -1)"),
        (
            "views.locals=scored",
            "views.locals: is how many local views there are; write views.local_views=scored",
        ),
        ("views.learn={ops,p}", "views.learn: a list is written in square brackets, views.learn=[ops,p]"),
        ("tasks={koleo}", "tasks: a list is written in square brackets, tasks=[koleo]"),
        ("train={batch}", "train: is a section and holds no value; write its keys as train.batch"),
        ("train.lr=.nan", "train.lr: must be a finite number or 'auto' (given: nan)"),
        (
            "train.optimizer=adam",
            "train.optimizer: must be 'adamw', 'adamw_095', 'sgd', 'lars' or 'lars_torch' (given: 'adam')",
        ),
        ("views.size=[32]", "views.size: must be a list of 2, a whole number or 'auto' (given: [32])"),
        ("views.jitter=[1,2,3]", "views.jitter: must be a list of 4 or 'auto' (given: [1, 2, 3])"),
        ("health.stop=maybe", "health.stop: must be true or false (given: 'maybe')"),
        ("views.policy=3", "views.policy: must be text (given: 3)"),
        ("task.mine=3", "task.mine: write an option of a task as task.NAME.OPTION"),
        ("tasks=nope", "tasks: must be a list (given: 'nope')"),
        (
            "tasks=[rotation,rotation]",
            "tasks: must be a list that names each task once, not rotation twice (given: ['rotation', 'rotation'])",
        ),
        (
            "views.size=[32,a]",
            "views.size: must be a whole number, a list in which each is a whole number or 'auto' (given: [32, 'a'])",
        ),
        (
            "views.global_scale=[1,0.5]",
            "views.global_scale: must be two shares of the image in (0, 1], the smaller one first or 'auto' "
            "(given: [1, 0.5])",
        ),
        ("views.sigma=[0,1]", "views.sigma: must be two numbers above 0, the smaller one first (given: [0, 1])"),
        ("backbone.drop_path=1", "backbone.drop_path: must be less than 1 or 'auto' (given: 1)"),
        ("train.seed=-1", "train.seed: must be at least 0 (given: -1)"),
        ("train.weight_decay=none", "train.weight_decay: must be a number (given: none)"),
        ("objective.a.b=3", "unknown key 'objective.a.b': did you mean 'objective.name'?"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(word: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        config.resolve("dino", config.parse_overrides([word]))
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2.5e3", -2500.0),
        ("3", 3),
        ("true", True),
        ("none", None),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ("vit_small", "vit_small"),
        ("[1", "[1"),
        ("a: [", "a: ["),
        ("", None),
        ("3rd", "3rd"),
        ("[&a 1, *a]", "[&a 1, *a]"),
        *((text, text) for text in TAGGED),
        (ENDLESS, ENDLESS),
    ],
)
def test_values_are_read_as_yaml_reads_them(text: str, value: Any) -> None:
    assert config.parse_value(text) == value
    assert config.parse_overrides([f"a.b={text}"]) == {"a.b": value}


def test_a_value_may_hold_an_equals_sign() -> None:
    assert config.parse_overrides(["images.labels=a=b.csv"]) == {"images.labels": "a=b.csv"}


def test_command_line_beats_recipe_beats_default() -> None:
    plain = config.resolve("dino", {})
    assert plain.config.train.weight_decay == 0.04
    assert plain.origin["train.weight_decay"] == "recipe dino"
    assert config.Config().train.weight_decay == 0.05
    assert plain.config.train.seed == 0
    assert plain.origin["train.seed"] == "default"
    given = config.resolve("dino", {"train.weight_decay": 0.3, "train.seed": 7})
    assert (given.config.train.weight_decay, given.config.train.seed) == (0.3, 7)
    assert given.origin["train.weight_decay"] == given.origin["train.seed"] == "command line"


def test_one_budget_replaces_the_others() -> None:
    def budget(**given: Any) -> tuple[Any, Any, Any]:
        train = config.resolve("dino", {f"train.{key}": value for key, value in given.items()}).config.train
        return train.epochs, train.minutes, train.steps

    assert budget() == ("auto", None, "auto")
    assert budget(epochs=3) == (3, None, "auto")
    assert budget(minutes=3) == (None, 3, "auto")
    assert budget(steps=3) == (None, None, 3)
    assert budget(epochs="auto", minutes=3) == (None, 3, "auto")
    assert refused(train__steps=3, train__minutes=4) == "give one budget, not both --minutes and train.steps"


def test_a_given_budget_beats_the_steps_of_a_runs_own_file(tmp_path: Path) -> None:
    first, _ = settle(config.resolve("dino", {"train.epochs": 2}), IMAGENET)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(first))
    again, _ = settle(config.resolve(str(file), {"train.epochs": 4}), IMAGENET)
    assert again.config.train.steps == 2 * int(first.config.train.steps)


@pytest.mark.parametrize("recipe", config.recipe_names())
def test_every_recipe_settles_and_its_file_is_itself_a_recipe(recipe: str, tmp_path: Path) -> None:
    settled, _ = settle(config.resolve(recipe, {"train.seed": 3}), IMAGENET)
    assert settled.auto_keys() == []
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(settled))
    again, _ = settle(config.resolve(str(file), {}), IMAGENET)
    assert again.config == settled.config
    stored = config.from_yaml(file)
    assert stored.config == settled.config
    assert stored.origin == {key: settled.origin.get(key, "default") for key in config.flatten(settled.config)}


def test_the_recipe_of_a_file_of_ones_own_is_named_after_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("objective.name: simclr\ntrain.lr: 1e-3\n")
    resolved = config.resolve(str(file), {})
    assert resolved.config.recipe == str(file)
    assert resolved.origin["objective.name"] == f"recipe {file}"
    assert resolved.config.train.lr == 0.001


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: [", "cannot be read as YAML"),
        (LAUGHS, "cannot be read as YAML (it has an alias, *NAME: write the value out)"),
        *((f"train.lr: {text}\n", "(it has a tag, !NAME: write the value without it)") for text in TAGGED),
        (f"train.lr: {ENDLESS}\n", "cannot be read as YAML"),
        ("- a\n", "must hold lines of"),
        ("3: a\n", "must hold lines of"),
        ("train:\n  lr: 1\n", "train: is a section and holds no value; write its keys as train.lr"),
        ("train.lrr: 1\n", "unknown key 'train.lrr': did you mean 'train.lr'?"),
        ("objective.name: dinno\n", "unknown objective 'dinno': did you mean 'dino'?"),
    ],
)
def test_a_damaged_recipe_is_told_in_one_line(content: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    assert told in refused(str(file))


def test_options_of_a_plugin_are_checked_after_its_import() -> None:
    resolved = config.resolve("dino", {"objective.prototyps": 3})  # the core schema cannot know
    with pytest.raises(UserError, match=r"^unknown key 'objective.prototyps': did you mean 'objective.prototypes'\?$"):
        settle(resolved, IMAGENET)
    wrong = config.resolve("dino", {"objective.use_bn": "perhaps"})
    with pytest.raises(UserError, match=r"^objective.use_bn: must be true or false or 'auto' \(given: 'perhaps'\)$"):
        settle(wrong, IMAGENET)
    with pytest.raises(UserError, match=r"^unknown key 'views.flop': did you mean 'views.flip'\?$"):
        settle(config.resolve("dino", {"views.flop": 1}), IMAGENET)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"images.mean": [0.5, 0.5]}, "images.mean: has length 2, but the images have 3 channels"),
        ({"images.std": [0.5]}, "images.std: has length 1, but the images have 3 channels"),
        ({"views.size": 100}, "image size 100 x 100: backbone.patch 8 does not divide it"),
        ({"views.local_size": 50}, "views.local_size=50: must be a multiple of the patch size 16"),
        ({"backbone.heads": 5}, "backbone.width 384: backbone.heads 5 does not divide it"),
        ({"views.globals": 1, "views.locals": 0}, "views.globals=1: objective dino compares views"),
        ({"train.steps": 20, "train.warmup": 20}, "train.warmup=20: must be smaller than train.steps=20"),
        ({"train.batch": 8, "train.accumulate": 9}, "train.accumulate=9: must be at most train.batch=8"),
        ({"backbone.name": "vit_smal"}, "unknown backbone.name 'vit_smal': did you mean 'vit_small'?"),
    ],
)
def test_settings_that_do_not_fit_each_other(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        settle(config.resolve("dino", given), IMAGENET)
    assert str(error.value).startswith(told)


@pytest.fixture
def own_files(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The list of the user's files, empty, and put back after."""
    files: dict[str, Path] = {}
    monkeypatch.setattr(plugins, "_user_files", files)
    return files


def test_a_file_of_ones_own_becomes_a_plugin(own_files: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "my_simclr.py"
    file.write_text("from belvedere.objectives.simclr import SimClr\nclass Mine(SimClr):\n    pass\n")
    plugins.add_file(file)
    settled, _ = settle(config.resolve("simclr", {"objective.name": "my_simclr"}), IMAGENET)
    assert settled.auto_keys() == []
    with pytest.raises(UserError, match="holds no class derived from ViewPolicy, so it is no policy"):
        settle(config.resolve("simclr", {"views.policy": "my_simclr"}), IMAGENET)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("broken_one", "x = 1\ndef f(:\n", ", line 2: is no Python (invalid syntax)"),
        ("broken_two", "import os\n\nraise ValueError('oh')\n", ", line 3: ValueError: oh"),
        ("broken_three", "import nosuchmodule\n", ", line 1: ModuleNotFoundError: No module named 'nosuchmodule'"),
        (
            "broken_four",
            "class Foo:\n    pass\n",
            ": holds no class derived from one of Objective, ViewPolicy, Task, Protocol",
        ),
        ("dino", "", ": rename the file, there is a plug-in 'dino' already"),
        ("my-loss", "", ": rename the file, 'my-loss' is no Python name"),
    ],
)
def test_a_wrong_plugin_file_is_told_with_its_line(
    name: str, content: str, told: str, own_files: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(content)

    def use() -> None:
        plugins.add_file(file)
        settle(config.resolve("dino", {}), IMAGENET)

    with pytest.raises(UserError) as error:
        use()
    assert str(error.value) == f"--plugin {file}{told}"


def test_two_files_of_one_name_are_refused(own_files: dict[str, Path], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("")
    plugins.add_file(tmp_path / "a" / "mine.py")
    plugins.add_file(tmp_path / "a" / "mine.py")
    with pytest.raises(UserError, match="there is a plug-in 'mine' already"):
        plugins.add_file(tmp_path / "b" / "mine.py")
