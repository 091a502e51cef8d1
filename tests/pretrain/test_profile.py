"""`belvedere profile`: the parts of a step add up to it, measuring changes no loss, and advice follows the shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from belvedere import api
from belvedere import config as configuration
from belvedere.errors import UserError
from belvedere.images.items import evenly_spaced
from belvedere.images.source import find_images
from belvedere.pretrain.profile import PARTS, Profile, advice, measure
from belvedere.pretrain.start import open_images
from belvedere.pretrain.stopwatch import Laps
from tiny import MACHINE, NETWORK, tiles, tiny_canvases, tiny_trainer, train


def found(recipe: str, **settings: object) -> Profile:
    given = {**NETWORK, **MACHINE, "train.batch": 8} | {key.replace("__", "."): x for key, x in settings.items()}
    resolved = configuration.resolve(recipe, given)
    return measure(find_images(tiles(24)), tiny_canvases(), resolved, "cpu", seconds=0.0)


def test_parts_of_a_step_add_up_to_it() -> None:
    simclr, hard = found("simclr"), found("simclr", views__policy="hard")
    for one in (simclr, hard):
        assert tuple(one.seconds) == tuple(PARTS)
        assert min(one.seconds.values()) >= 0
        assert sum(one.share(part) for part in PARTS) == pytest.approx(1)
        # What is in no part is small beside what is.
        assert one.share("rest") < 0.5
        assert min(one.seconds[part] for part in ("views", "forward", "backward", "update")) > 0
        assert (one.images, one.batch, one.steps) == (24, 8, 3)
    # SimCLR has no teacher. Four candidates an image are more work than two.
    assert simclr.share("targets") < 0.05
    assert hard.seconds["policy"] > simclr.seconds["policy"]
    assert found("dino", views__locals=2, views__local_size=16).seconds["targets"] > 0


def test_measuring_changes_no_loss() -> None:
    losses = []
    for measured in (False, True):
        trainer, feed = tiny_trainer("dino", views__policy="hard", train__steps=3)
        if measured:
            trainer.around = laps = Laps(torch.device("cpu"))
        losses.append([report.loss for report in train(trainer, feed, 0, 3)])
    assert losses[0] == losses[1]
    assert set(laps.read()) == {"copy", "policy", "views", "targets", "forward", "backward", "update"}
    assert set(laps.read().values()) == {0.0}


def test_steps_come_from_the_budget_or_are_tried() -> None:
    assert found("simclr", train__epochs=1).steps == found("simclr", train__minutes=5).steps == 3


def test_of_many_images_some_are_decoded_unless_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SAMPLED", 4)
    resolved = configuration.resolve("simclr", {**NETWORK, **MACHINE, "train.batch": 8})
    images = tiles(60)
    some = api.profile(images, resolved, device="cpu", seconds=0.0)
    assert (some.images, some.measured) == (60, 8)  # a batch, which is more than 4
    assert some.lines()[0] == "measured on 8 of the images, evenly spaced: the others are not decoded yet"
    source = find_images(images)
    for most, expected in ((10, 10), (None, 60), (10, 60)):
        assert len(open_images(source, resolved, "cpu", most)[0]) == expected


def test_evenly_spaced_images_are_those_of_the_whole() -> None:
    images = tiles(9)
    source = find_images(images)
    some = evenly_spaced(source, 3)
    assert some.names == [source.names[i] for i in (0, 4, 8)]
    for k, i in enumerate((0, 4, 8)):
        np.testing.assert_array_equal(np.asarray(some.read(k)), images[i])
    assert some.digest() != source.digest()
    assert evenly_spaced(source, 20).names == source.names


def told(compiled: bool = True, **seconds: float) -> list[str]:
    parts = dict.fromkeys(PARTS, 0.0) | seconds
    one = Profile("cpu", "float32", 100, 10, 5, 50.0, parts, 2**30, ())
    return advice(one, "do this instead", has_locals=True, bf16=False, compiled=compiled)


def test_advice_names_what_takes_the_time() -> None:
    assert told(forward=0.5, views=0.1, rest=0.4) == []
    (network,) = told(forward=0.4, backward=0.4, views=0.1, rest=0.1)
    assert "80%" in network
    (waiting,) = told(waiting=0.1, forward=0.5, rest=0.4)
    assert "BELVEDERE_CACHE" in waiting
    (policy,) = told(policy=0.3, forward=0.5, rest=0.2)
    assert policy == "choosing views takes 30%: do this instead"
    (views,) = told(views=0.3, forward=0.5, rest=0.2)
    assert "views.locals" in views
    (slow,) = told(compiled=False, views=0.1, forward=0.5, rest=0.4)
    assert "a C++ compiler" in slow
    assert told(compiled=False, views=0.04, forward=0.5, rest=0.46) == []
    (update,) = told(update=0.25, forward=0.5, rest=0.25)
    assert "train.batch" in update


def test_lines_for_people() -> None:
    parts = dict.fromkeys(PARTS, 0.0) | {"forward": 0.3, "backward": 0.1}
    one = Profile("cpu", "bf16", 1000, 10, 5, 50.0, parts, 2**30, ("less is more",))
    lines = one.lines()
    assert lines[0] == "reading: 50 images/s: 0:20 for 1,000, once, then from the cache"
    assert lines[1] == "a step of 10 images: 400.0 ms on cpu in bf16, 25 images/s (mean of 5)"
    assert any(line.split()[:4] == ["forward", "75.0%", "300.0", "ms"] for line in lines)
    assert lines[-2:] == ["an epoch of 1,000 images: 0:40; memory: 1.0 GiB", "- less is more"]


def test_nothing_but_the_cache_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", tiles(24))
    before = torch.get_rng_state()
    resolved = configuration.resolve("simclr", {**NETWORK, **MACHINE, "train.batch": 8})
    assert api.profile("images.npy", resolved, device="cpu", seconds=0.0).images == 24
    assert [path.name for path in tmp_path.iterdir()] == ["images.npy"]
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(UserError, match=r"train\.batch"):
        api.profile("images.npy", configuration.resolve("simclr", {**MACHINE, "train.batch": 64}), seconds=0.0)
