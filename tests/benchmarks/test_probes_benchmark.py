"""Probes in small: the held-out part is of the training images and not trained on, and a row is measured once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import probes
from probes import split


def names(folder: Path) -> set[str]:
    return {f"{file.parent.name}/{file.name}" for file in folder.glob("*/*")}


def test_the_held_out_part_is_the_last_of_every_class(tmp_path: Path) -> None:
    images = tmp_path / "train"
    for label in ("cat", "dog"):
        (images / label).mkdir(parents=True)
        for number in range(5):
            (images / label / f"{number}.png").write_bytes(b"")
    rest, held = split(images, 4)
    assert names(held) == {f"{label}/{number}.png" for label in ("cat", "dog") for number in (3, 4)}
    assert names(rest) == names(images) - names(held)


@pytest.mark.slow
def test_a_probe_of_a_few_steps(few_cifar10: Path, script: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "probes.json"
    command = ["--recipe", "simsiam", "--set", "train.lr=0.001"]
    command += ["--steps", "4", "--batch", "32", "--images", "400", "--held", "100", "--device", "cpu"]
    command += ["--archives", str(few_cifar10), "--work", str(tmp_path / "work"), "--out", str(out)]
    for seeds in (["0"], ["0", "1"]):
        script(probes, *command, "--seeds", *seeds)
    rows = json.loads(out.read_text())
    assert [(row["recipe"], row["set"], row["seed"]) for row in rows] == [
        ("simsiam", ["train.lr=0.001"], i) for i in (0, 1)
    ]
    assert [set(row["knn"]) for row in rows] == [
        {"run", "untrained", "pixels", "majority"},
        {"run", "untrained", "majority"},
    ]
    for row in rows:
        assert row["lr"] == 0.001
        assert {"commit", "command", "cpu"} <= set(row["machine"])
        assert row["looks"][-1][0] == 4
        assert row["knn"]["run"]["low"] <= row["knn"]["run"]["value"] <= row["knn"]["run"]["high"]
    # Nothing of the test set was even unpacked.
    assert [folder.name for folder in sorted((tmp_path / "work" / "cifar10").iterdir())] == [
        "train",
        "train_300",
        "train_400",
        "train_400_last_100",
    ]
