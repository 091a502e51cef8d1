"""What makes pairs hard, whether choices can be foretold, and what cheap choosing keeps: cases with known answers."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from belvedere.config import Resolved
from belvedere.pretrain.compose import make_encoder, make_trainer
from belvedere.pretrain.trainer import Trainer
from belvedere.report import analysis, factors, savings
from belvedere.report.record import Record, read_record
from belvedere.report.selection import Replay, as_hard, candidates_of, names_by_turns, pixels_of, policy_of, replay
from belvedere.views.chosen import Scored
from belvedere.views.params import ViewParams
from belvedere.views.policies.hard import Hard
from belvedere.views.views import Views
from tiny import tiny_canvases, tiny_trainer

NAMES = ("global_a", "global_b", "global_a.1", "global_b.1")
FACTS = ("iou", "distance", "delta_hue", "delta_gray")


def made(scores: str, images: int = 300, draw: int = 0) -> Replay:
    """Pairs of four candidates with random facts; the losses follow the named rule."""
    generator = torch.Generator().manual_seed(draw)
    pairs = list(combinations(NAMES, 2))

    def uniform() -> Tensor:
        return torch.rand(len(pairs), images, generator=generator)

    facts = {name: uniform() for name in FACTS}
    facts["delta_blur"] = torch.zeros(len(pairs), images)
    noise, image = uniform(), 10 * torch.rand(images, generator=generator)
    rules = {
        "overlap": -facts["iou"],
        "chance": noise,
        "hue": (2 * facts["delta_hue"] + 0.1 * noise + image).exp(),
    }
    losses = rules[scores]
    return Replay(pairs, losses, {1.0: losses, 0.5: noise}, facts, np.arange(images))


def test_a_choice_by_overlap_alone_is_foretold() -> None:
    found = factors.predictability(made("overlap"), made("overlap", draw=1))
    assert found.model > 0.97
    assert found.least_overlap == 1
    assert found.chance == pytest.approx(1 / 6)


def test_a_blind_choice_is_foretold_by_chance_only() -> None:
    known, held_out = made("chance"), made("chance", draw=1)
    found = factors.predictability(known, held_out)
    assert abs(found.model - 1 / 6) < 4 * (1 / 6 * 5 / 6 / 300) ** 0.5
    assert abs(found.least_overlap - 1 / 6) < 4 * (1 / 6 * 5 / 6 / 300) ** 0.5
    assert factors.importance(known, held_out).explained < 0.05


def test_importance_finds_the_planted_factor() -> None:
    """How hard an image is as a whole (a factor of up to e^10 here) is no fact of its pairs."""
    found = factors.importance(made("hue"), made("hue", draw=1))
    assert found.factors[0].label == "delta_hue"
    assert found.explained > 0.9
    assert found.factors[0].value > 20 * max(abs(bar.value) for bar in found.factors[1:])
    assert "delta_blur" not in {bar.label for bar in found.factors}


def test_losses_below_zero_are_explained_too() -> None:
    found = factors.importance(made("overlap"), made("overlap", draw=1))
    assert found.factors[0].label == "iou"
    assert found.explained > 0.9


def test_without_any_fact_nothing_is_explained() -> None:
    known = made("chance")
    same = Replay(known.pairs, known.scores, {}, {"iou": torch.ones(6, 300)}, known.index)
    assert factors.importance(same, same) == factors.Importance(0.0, [])
    assert factors.predictability(same, same).chance == pytest.approx(1 / 6)


def test_facts_of_the_chosen_and_of_the_others() -> None:
    found = made("overlap", images=50)
    by_hand = [int(found.facts["iou"][:, n].argmin()) for n in range(50)]
    assert found.chosen.tolist() == by_hand
    assert found.of_chosen("distance").tolist() == [float(found.facts["distance"][p, n]) for n, p in enumerate(by_hand)]
    others = [float(found.facts["distance"][p, n]) for p in range(6) for n in range(50) if p != by_hand[n]]
    assert found.of_others("distance").tolist() == others


def test_fewer_candidates_are_the_first_ones() -> None:
    found = made("chance")
    assert names_by_turns(found.pairs) == list(NAMES)
    three = found.among(3)
    assert three.pairs == list(combinations(NAMES[:3], 2))
    rows = [found.pairs.index(pair) for pair in three.pairs]
    assert torch.equal(three.scores, found.scores[rows])
    assert torch.equal(three.facts["iou"], found.facts["iou"][rows])
    assert torch.equal(three.cheap[0.5], found.cheap[0.5][rows])


def hard_trainer(objective: str = "simclr", images: int = 48, channels: int = 3, **settings: object) -> Trainer:
    """A tiny trainer with the policy that the analysis puts around `random`."""
    canvases = tiny_canvases(images, channels=channels)
    plain, _ = tiny_trainer(objective, canvases, **settings)
    resolved, _ = as_hard(Resolved(plain.config, {}))
    return make_trainer(resolved.config, canvases, plain.fabric)


def test_cheap_and_costly_ways_against_full_choosing() -> None:
    """Everything choosing could save, on losses where half resolution is pure chance."""
    trainer, found = hard_trainer(), made("overlap", images=4000)
    settings = {
        (s.candidates, s.scale, s.every, s.fraction): s
        for s in savings.settings(trainer, found, 4)
        if not s.reuse_teacher
    }
    full = settings[4, 1.0, 1, 1.0]
    assert full.kept == pytest.approx(1, abs=1e-5)
    # SimCLR: 6 forwards' worth a step, and one forward of each of 4 candidates (spec 1.5).
    assert full.cost == pytest.approx(1 + 4 / 6)
    assert settings[4, 1.0, 2, 1.0].kept == pytest.approx(0.5, abs=1e-5)
    assert settings[4, 1.0, 1, 0.5].cost == pytest.approx(1 + 2 / 6)
    assert settings[4, 1.0, 4, 0.5].kept == pytest.approx(1 / 8, abs=1e-5)
    assert abs(settings[4, 0.5, 1, 1.0].kept) < 0.05
    best = savings.best(savings.settings(trainer, found, 4))
    assert [s.kept for s in best] == sorted(s.kept for s in best)
    assert best[-1].words == "views.candidates=4"
    assert settings[4, 0.5, 2, 0.5].words == "views.candidates=4 views.scale=0.5 views.every=2 views.fraction=0.5"


def test_faithfulness_of_equal_and_of_unrelated_scores() -> None:
    found = savings.faithfulness(made("chance"), [2, 4])[4]
    assert found[1.0] == {"fidelity": 1.0, "kept": pytest.approx(1.0)}
    unrelated = savings.faithfulness(made("overlap", images=4000), [4])[4][0.5]
    assert unrelated["fidelity"] == pytest.approx(1 / 6, abs=0.03)
    assert unrelated["kept"] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("objective", ["simclr", "dino"])
def test_the_replay_chooses_what_training_would(objective: str) -> None:
    """One batch: the pair of the replay is the one that `select` trains on."""
    trainer = hard_trainer(objective, images=8)
    canvases, index = tiny_canvases(8), np.arange(8)
    found = replay(trainer, canvases, index, 3, (0.5,))
    clock = trainer.clock(int(trainer.config.train.steps) - 1)
    params = candidates_of(trainer, canvases, index, 3)

    def render(record: ViewParams, scale: float = 1.0) -> Views:
        return trainer.render(torch.as_tensor(index), pixels_of(trainer, canvases, index), clock, record, scale)

    chosen = policy_of(trainer).select(params, render, trainer.score_at(clock))
    for n, p in enumerate(found.chosen.tolist()):
        pair = [int(params.key[params.slot(name), n]) for name in found.pairs[p]]
        assert [int(chosen.key[chosen.slot(name), n]) for name in ("global_a", "global_b")] == pair
    assert not torch.equal(found.cheap[0.5], found.scores)


def test_full_resolution_is_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, asked = hard_trainer(images=8), []
    plain = Hard.score_choices

    def counted(*given: Any, **more: Any) -> Scored:
        asked.append(given[5])
        return plain(*given, **more)

    monkeypatch.setattr(Hard, "score_choices", counted)
    found = replay(trainer, tiny_canvases(8), np.arange(8), 0, savings.scales_of(trainer))
    assert asked == [1.0, 0.75, 0.5]
    assert torch.equal(found.cheap[1.0], found.scores)


def test_batches_of_the_runs_size_are_scored_together() -> None:
    trainer = hard_trainer(images=32)
    whole = replay(trainer, tiny_canvases(32), np.arange(16), 0)
    half = replay(trainer, tiny_canvases(32), np.arange(8), 0)
    assert trainer.config.train.batch == 8
    torch.testing.assert_close(whole.scores[:, :8], half.scores)


def test_draws_differ_and_no_candidate_is_preferred() -> None:
    trainer = hard_trainer(images=160)
    first, second = (replay(trainer, tiny_canvases(160), np.arange(160), draw, candidates=4) for draw in (0, 1))
    assert not torch.equal(first.facts["iou"], second.facts["iou"])
    for name in NAMES:
        share = np.mean(
            [float(torch.tensor([name in pair for pair in r.pairs])[r.chosen].float().mean()) for r in (first, second)]
        )
        assert abs(share - 0.5) < 4 * (0.25 / 320) ** 0.5


def test_asymmetric_recipes_pair_one_view_of_each_law() -> None:
    found = replay(hard_trainer("dino"), tiny_canvases(48), np.arange(8), 0)
    assert len(found.pairs) == 16
    assert all(a.startswith("global_a") and b.startswith("global_b") for a, b in found.pairs)
    assert found.among(4).pairs == [
        ("global_a", "global_b"),
        ("global_a", "global_b.1"),
        ("global_a.1", "global_b"),
        ("global_a.1", "global_b.1"),
    ]


def test_strengths_of_operations_are_facts_of_a_pair() -> None:
    found = replay(hard_trainer("simclr", views__policy="randaugment"), tiny_canvases(48), np.arange(8), 0)
    strengths = {name: fact for name, fact in found.facts.items() if name.startswith("op_")}
    assert len(strengths) > 5
    assert sum(float(fact.sum()) for fact in strengths.values()) > 0
    assert "delta_hue" not in factors.varying(found)


def test_masks_are_facts_of_a_pair_where_views_have_them() -> None:
    """iBOT scores a view without a mask as if its patches were known: the page has to name it."""
    found = replay(hard_trainer("ibot"), tiny_canvases(48), np.arange(16), 0)
    assert "masked" in factors.varying(found)
    assert "masked" not in replay(hard_trainer("dino"), tiny_canvases(48), np.arange(8), 0).facts
    assert analysis.label("masked") == "masked patches"


@pytest.mark.parametrize(("channels", "policy"), [(1, "random"), (4, "randaugment")])
def test_the_page_of_a_network_as_it_is(
    make_run: Callable[..., Path], tmp_path: Path, channels: int, policy: str
) -> None:
    """Images of any number of channels; names of files are text."""
    canvases = tiny_canvases(32, channels=channels)
    trainer = hard_trainer(images=32, channels=channels, views__policy=policy)
    index = np.arange(32)
    found = analysis.find(trainer, canvases, index, 4)
    encoder = make_encoder(trainer.config, trainer.evaluated.backbone)
    pictures = analysis.draw(tmp_path, trainer, encoder, canvases, found)
    assert [picture.name for picture in pictures] == ["candidates", *(["learned"] if policy == "randaugment" else [])]
    record = read_record(make_run("<b>run"))
    record = replace(record, resolved=Resolved(trainer.config, {}))
    page = analysis.render(record, found, tmp_path, pictures, "32 of <32> images.")
    assert "Views of &lt;b&gt;run" in page
    assert "32 of &lt;32&gt; images" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    chosen, others = found.known.of_chosen("iou").mean(), found.known.of_others("iou").mean()
    assert f"IoU {chosen:.2f} and {others:.2f}" in page
    assert f"guessing: {100 / 6:.0f} %" in page
    assert len(found.settings) > 20
    overlap = found.known.facts["iou"]
    assert f"of all pairs {overlap.mean():.2f}, at least {overlap.min(0).values.mean():.2f}." in page
    assert f"least of the image, mean {overlap.min(0).values.mean():.2f}" in written(page, "Overlap of the chosen pair")
    assert "half the size kept 0.37 of the choices" in page
    assert "chance of 4" in written(page, "Choices that stay the same")
    assert "chance of 4" not in written(page, "Hardness that is kept")
    assert {"1 (global_a)", "4 (global_b.1)"} <= written(page, "How often each candidate")


def written(page: str, title: str) -> set[str]:
    """What is written in the plot of that title, or one that begins so."""
    svg = re.search(rf"<b>{re.escape(title)}.*?base64,([^\"]+)", page, re.DOTALL)
    assert svg is not None, title
    return set(re.findall(r">([^<>\n]+)</text>", base64.b64decode(svg[1]).decode()))


def test_all_candidates_are_judged_at_once() -> None:
    """One interval in twenty misses by chance; only what chance hardly does is called a bug."""
    fair = made("chance", images=600)
    assert analysis.fairness(fair) > 0.01
    first = fair.scores.clone()
    first[0] += 0.3
    assert analysis.fairness(replace(fair, scores=first)) < 1e-6
    assert "nothing says that a candidate is preferred" in analysis.told_of_fairness(0.01)
    assert "look for a bug" in analysis.told_of_fairness(1e-6)
    two = fair.among(2)
    assert analysis.fairness(two) == 1.0


def test_accuracy_over_the_clock(make_run: Callable[..., Path]) -> None:
    """V10: both runs in one unit; the clock of a resumed run goes on; what was not measured is not drawn."""

    def record(name: str, looks: list[tuple[float | None, float]]) -> Record:
        given = read_record(make_run(name))
        clock = [replace(given.looks[0], values={"knn": knn}, elapsed=seconds) for seconds, knn in looks]
        return replace(given, looks=clock)

    hard = record("hard", [(0.0, 30.0), (100.0, 40.0), (None, 0.0), (50.0, 45.0), (200.0, 50.0)])
    plain = record("plain", [(0.0, 30.0), (240.0, 48.0)])
    assert hard.over_time("knn") == [(0.0, 30.0), (100.0, 40.0), (150.0, 45.0), (300.0, 50.0)]
    (panel,) = analysis.accuracy([("hard", hard), ("plain", plain)])
    assert panel.title == "k-NN over minutes of wall-clock"
    assert panel.value == "50.0 % vs 48.0 %"
    assert panel.alt.endswith("hard 50.0 % after 5, plain 48.0 % after 4.")
    (alone,) = analysis.accuracy([("plain", plain)])
    assert "Two runs" in panel.note
    assert "Two runs" not in alone.note
    assert analysis.accuracy([("bare", record("bare", []))]) == []
    assert read_record(make_run("old")).over_time("knn") == []
    (read,) = analysis.accuracy([("read", read_record(logged(make_run("logged"))))])
    assert read.title == "k-NN over seconds of wall-clock"


def logged(run: Path) -> Path:
    """The run with a look as the loop writes it."""
    look = {"step": 60, "look": {"knn": 40.0}, "judged": {}, "health": "healthy", "color": "green", "why": ["Well."]}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**look, "elapsed": 12.5}) + "\n")
    return run
