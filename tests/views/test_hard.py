"""Hard views by themselves, with made-up scores: who competes, who wins, what it is expected to cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from torch import Tensor

from belvedere.config import resolve
from belvedere.errors import UserError
from belvedere.plugins import load
from belvedere.schedules import Clock
from belvedere.views.chosen import describe, fidelity, rank_correlations
from belvedere.views.cost import Work
from belvedere.views.draws import uniform
from belvedere.views.params import FIELDS, ViewParams
from belvedere.views.policies.hard import WIDER, Hard
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import ViewSettings, build_slots
from belvedere.views.views import Views

SYMMETRIC = ViewSettings(size=(16, 16), blur_p=(0.5, 0.5, 0.5), solarize_p=(0.0, 0.0, 0.0))
MULTI_CROP = ViewSettings(size=(16, 16), locals=2, local_size=(8, 8))
SIZES = np.full((6, 2), 40)
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8))


def hard(settings: ViewSettings = SYMMETRIC, **options: object) -> Hard:
    model = Hard.options_model(options)
    return Hard(model(**options), build_slots(settings, 3), 3)


def render(params: ViewParams, scale: float) -> Views:
    positions = params.index.tolist()
    views = render_views(IMAGES[positions], params, mean=(0.5,) * 3, std=(0.2,) * 3, scale=scale)
    further = {slot: torch.full((len(positions), 2, 2), "." in slot) for slot in params.slots}
    return views.replace(mask=further)


class Scores:
    """Made-up scores of (choice, image), and what they were asked for."""

    def __init__(self, of: Callable[[tuple[str, ...], Views], Tensor]) -> None:
        self.of = of
        self.asked: list[Views] = []
        self.choices: list[tuple[str, ...]] = []

    def __call__(self, views: Views, choices: Sequence[tuple[str, ...]], by: str = "loss", chunk: int = 0) -> Tensor:
        self.asked.append(views)
        self.choices = list(choices)
        return torch.stack([self.of(choice, views) for choice in choices])


def chosen(policy: Hard, scores: Scores, epoch: int = 0, step: int = 0) -> tuple[ViewParams, ViewParams]:
    policy.begin_step(Clock(step, 10, 100))
    proposed = policy.propose(np.arange(6), SIZES, epoch, 0)
    return proposed, policy.select(proposed, render, scores)


def noise(seed: int, shift: float = 0.0) -> Scores:
    """Independent scores of choice and image."""
    table: dict[tuple[str, ...], Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def of(choice: tuple[str, ...], views: Views) -> Tensor:
        if choice not in table:
            table[choice] = torch.rand(6, generator=generator) + shift
        return table[choice][views.params.index]

    return Scores(of)


def same(a: ViewParams, b: ViewParams) -> bool:
    return a.slots == b.slots and all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def where_from(params: ViewParams, proposed: ViewParams) -> list[list[str]]:
    """The candidate that each chosen view is, by its key, slot by slot."""
    return [
        [proposed.slots[int((proposed.key[:, n] == key).nonzero()[0])] for n, key in enumerate(row)]
        for row in params.key
    ]


# --- who competes -----------------------------------------------------------------------------------------------------


@given(st.integers(2, 8))
def test_all_pairs_compete_where_the_slots_have_one_law(candidates: int) -> None:
    policy = hard(candidates=candidates)
    choices = policy.choices(0)
    assert len(choices) == len(set(choices)) == candidates * (candidates - 1) // 2
    assert choices[0] == ("global_a", "global_b")


@given(st.integers(2, 8))
def test_families_do_not_mix_where_the_laws_differ(candidates: int) -> None:
    """H6: slot a never gets a view of slot b's law."""
    policy = hard(MULTI_CROP, candidates=candidates)
    choices = policy.choices(0)
    assert len(choices) == ((candidates + 1) // 2) * (candidates // 2)
    assert all(a.startswith("global_a") and b.startswith("global_b") for a, b in choices)


def test_local_views_stay_count_or_are_chosen() -> None:
    assert {len(choice) for choice in hard(MULTI_CROP).choices(0)} == {2}
    scored = hard(MULTI_CROP, local_views="scored").choices(0)
    assert {choice[2:] for choice in scored} == {("local_1", "local_2")}
    policy = hard(MULTI_CROP, local_views="choose", limit=16)
    choices = policy.choices(0)
    assert len(choices) == len(set(choices)) == 16
    assert choices[0] == ("global_a", "global_b", "local_1", "local_2")
    assert {name for choice in choices for name in choice[2:]} == {"local_1", "local_2", "local_1.1", "local_2.1"}
    policy.begin_step(Clock(1, 10, 100))
    assert policy.choices(0) != choices
    # 4 pairs x 6 pairs of local views are all there are.
    assert len(hard(MULTI_CROP, local_views="choose", limit=1000).choices(0)) == 24
    proposed, winners = chosen(hard(MULTI_CROP, local_views="choose"), noise(3))
    sources = where_from(winners, proposed)
    assert winners.slots == ("global_a", "global_b", "local_1", "local_2")
    assert all(name.startswith("local") for row in sources[2:] for name in row)
    assert all(a != b for a, b in zip(*sources[2:], strict=True))


def test_the_anchor_is_in_every_pair() -> None:
    assert hard(scorer="anchor").choices(0) == [("global_a", name) for name in ("global_b", "global_a.1", "global_b.1")]


# --- who wins ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from([SYMMETRIC, MULTI_CROP]), st.integers(2, 6))
def test_the_hardest_pair_of_each_image_wins(seed: int, settings: ViewSettings, candidates: int) -> None:
    """H2, H3 and H5: the record is that of the best-scored candidates, and the pixels follow it."""
    scores = noise(seed)
    proposed, winners = chosen(hard(settings, candidates=candidates), scores)
    table = torch.stack([scores.of(choice, scores.asked[0]) for choice in scores.choices])
    sources = where_from(winners, proposed)
    views, all_views = render(winners, 1.0), render(proposed, 1.0)
    for n in range(6):
        best = scores.choices[int(table[:, n].argmax())]
        assert (sources[0][n], sources[1][n]) == best
        for slot, name in zip(("global_a", "global_b"), best, strict=True):
            assert torch.equal(views[slot][n], all_views[name][n])


def test_ties_go_to_the_first_pair_and_a_constant_changes_nothing() -> None:
    """H7, and H12: losses may be negative."""
    proposed, winners = chosen(hard(), Scores(lambda choice, views: torch.full((6,), -7.0)))
    assert same(winners, proposed.select(["global_a", "global_b"]))
    assert same(chosen(hard(), noise(1))[1], chosen(hard(), noise(1, shift=-100.0))[1])


def test_scores_that_are_not_finite_end_the_run() -> None:
    with pytest.raises(UserError, match="not finite at step 0"):
        chosen(hard(), Scores(lambda choice, views: torch.full((6,), float("nan"))))


def test_more_candidates_are_harder() -> None:
    """H3: candidate sets are nested, so the best score cannot fall."""
    scores = noise(5)
    best = []
    for candidates in (2, 3, 4, 6, 8):
        policy = hard(candidates=candidates)
        chosen(policy, scores)
        assert policy._last is not None
        best.append(policy._last.scored.scores.max(0).values)
    assert all(bool((more >= fewer).all()) for fewer, more in pairwise(best))


def test_a_permuted_batch_has_the_permuted_choice() -> None:
    """H9."""
    policy, order = hard(), torch.tensor([3, 0, 5, 1, 4, 2])
    policy.begin_step(Clock(0, 10, 100))
    straight = policy.select(policy.propose(np.arange(6), SIZES, 0, 0), render, noise(2))
    permuted = policy.select(policy.propose(order.numpy(), SIZES, 0, 0), render, noise(2))
    assert torch.equal(permuted.key, straight.key[:, order])


def test_two_candidates_are_the_inner_policy() -> None:
    """H1, before any network."""
    for settings in (SYMMETRIC, MULTI_CROP):
        slots = build_slots(settings, 3)
        _, winners = chosen(hard(settings, candidates=2), noise(0))
        assert same(winners, sample_views(slots, np.arange(6), SIZES, 0, 0))


def test_it_chooses_when_it_was_told_to() -> None:
    """`every`, `start_epoch` and `fraction`: the rest trains on the first candidates."""
    policy = hard(every=3, start_epoch=1.0)
    assert [step for step in range(20) if policy.chooses(Clock(step, 10, 20))] == [12, 15, 18]
    scores = noise(4)
    proposed, winners = chosen(policy, scores)
    assert same(winners, proposed.select(["global_a", "global_b"]))
    assert scores.asked == []
    # Every pair but the first scores 1: an image whose views are chosen never gets the first pair.
    unlike = Scores(lambda c, views: torch.full((len(views.params.index),), float(c != ("global_a", "global_b"))))
    proposed, winners = chosen(hard(fraction=0.5), unlike)
    plain = proposed.select(["global_a", "global_b"])
    concerned = uniform(0, 0, np.arange(6), "hard/fraction") < 0.5
    assert 0 < concerned.sum() < 6
    assert [views.params.index.tolist() for views in unlike.asked] == [np.flatnonzero(concerned).tolist()]
    assert (winners.key != plain.key).any(0).tolist() == concerned.tolist()
    # An image is concerned or not whatever the batch; where none is, nothing is scored.
    policy, nobody = hard(fraction=0.5), int(np.flatnonzero(~concerned)[0])
    policy.begin_step(Clock(0, 10, 100))
    alone = policy.propose([nobody], SIZES[:1], 0, 0)
    assert same(policy.select(alone, render, noise(0)), alone.select(["global_a", "global_b"]))


def test_cheap_scores_see_smaller_views_without_masks() -> None:
    """H8 is the other side: at scale 1 nothing is resized."""
    whole, half = noise(0), noise(0)
    chosen(hard(), whole)
    chosen(hard(scale=0.5), half)
    assert whole.asked[0].params.size == ((16, 16),) * 4
    # The second time to see what the cheap scores are worth.
    assert [views.params.size[0] for views in half.asked] == [(8, 8), (16, 16)]
    assert [views.mask is None for views in half.asked] == [True, False]


def test_a_process_without_concerned_images_scores_but_does_not_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes gather from it, and no process matters: its image trains on its first pair as it would alone."""
    monkeypatch.setattr("belvedere.views.policies.hard.world_size", lambda: 2)
    nobody = int(np.flatnonzero(uniform(0, 0, np.arange(6), "hard/fraction") >= 0.5)[0])
    policy = hard(fraction=0.5)
    policy.begin_step(Clock(0, 10, 100))
    alone = policy.propose([nobody], SIZES[:1], 0, 0)
    unlike = Scores(lambda c, views: torch.full((len(views.params.index),), float(c != ("global_a", "global_b"))))
    assert same(policy.select(alone, render, unlike), alone.select(["global_a", "global_b"]))
    assert [views.params.index.tolist() for views in unlike.asked] == [[nobody]]
    assert "hard/iou" not in policy.log()


def test_fidelity_is_measured_at_the_first_choice_and_now_and_then() -> None:
    policy, told = hard(scale=0.5, every=4, start_epoch=1.5), []
    for step in range(300):
        policy.begin_step(Clock(step, 100, 300))
        policy.select(policy.propose(np.arange(6), SIZES, 0, 0), render, noise(step))
        if "hard/fidelity" in policy.log():
            told.append(step)
    assert told == [152, 200, 248, 296]


# --- telling ----------------------------------------------------------------------------------------------------------


def test_fidelity_compares_winners_and_hardness() -> None:
    full = torch.tensor([[4.0, 0.0], [0.0, 2.0], [2.0, 4.0]])
    assert fidelity(full, full) == {"fidelity": 1.0, "kept": 1.0}
    other = torch.tensor([[9.0, 1.0], [0.0, 5.0], [1.0, 2.0]])  # right for the first image, the middle for the second
    found = fidelity(other, full)
    assert found["fidelity"] == 0.5
    assert found["kept"] == pytest.approx((2.0 + 0.0) / (2.0 + 2.0))


def test_an_anchor_is_judged_by_all_pairs() -> None:
    """The hardest pair may be one that it does not see."""
    order = [*hard().choices(0)]
    others = [pair for pair in order if "global_a" not in pair]
    scores = Scores(lambda c, views: torch.full((6,), float(order.index(c[:2]) if c[:2] in others else 0.0)))
    policy = hard(scorer="anchor")
    chosen(policy, scores)
    assert [len(views.names) for views in scores.asked] == [4, 4]
    told = policy.log()
    full = torch.tensor([scores.of(c, scores.asked[0])[0] for c in order])
    assert told["hard/fidelity"] == 0.0
    assert told["hard/kept"] == pytest.approx(float(-full.mean() / (full.max() - full.mean())))
    # One that sees the hardest pair chooses it.
    seen = Scores(lambda c, views: torch.full((6,), float(c[:2] == ("global_a", "global_b.1"))))
    chosen(policy, seen)
    assert policy.log()["hard/kept"] == 1.0
    policy = hard(MULTI_CROP, scorer="anchor", local_views="choose", limit=6)
    chosen(policy, noise(1))
    assert 0.0 <= policy.log()["hard/fidelity"] <= 1.0


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, 1),
        ({"local_views": "scored"}, 1),
        ({"local_views": "choose"}, 1),  # 64 are more than there are
        ({"local_views": "choose", "limit": 2}, 2),
        ({"local_views": "choose", "limit": 2, "scale": 0.5}, 2),
    ],
)
def test_fidelity_is_told_by_what_else_was_scored(options: dict[str, object], asked: int) -> None:
    """Full scores of all combinations agree with themselves; some of them are judged by a wider drawing."""
    policy, scores = hard(MULTI_CROP, **options), noise(2)
    chosen(policy, scores)
    told = policy.log()
    assert len(scores.asked) == asked
    assert {"hard/fidelity", "hard/kept", "hard/kept_all"} <= told.keys()
    assert (told["hard/kept"] == told["hard/fidelity"] == 1) is (asked == 1)


def test_a_drawing_of_combinations_is_judged_by_one_eight_times_as_wide() -> None:
    """The own ones come first in it, and the hardest counts wherever it is."""
    policy = hard(MULTI_CROP, local_views="choose", limit=3)
    own, everyone = policy.choices(0), policy.choices(0, "loss", WIDER)
    assert (len(own), len(everyone)) == (3, 24)
    assert everyone[:3] == own
    for best, fidelity_, kept in ((own[2], 1.0, 1.0), (everyone[10], 0.0, -1 / 23)):
        scores = Scores(lambda c, views, best=best: torch.full((6,), float(c == best)))
        chosen(policy, scores)
        told = policy.log()
        assert told["hard/fidelity"] == fidelity_
        assert told["hard/kept"] == pytest.approx(kept)


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, 1.0),
        ({"every": 4}, 0.25),
        ({"fraction": 0.5, "every": 2}, 0.25),
        ({"start_epoch": 2.0, "every": 2}, 0.5),  # what came before counts neither here nor in the cost
    ],
)
def test_hardness_is_told_over_all_steps_and_images(options: dict[str, object], share: float) -> None:
    work = Work(2, 0, 0.0, False, 197, 384)
    assert hard(**options).expected_cost(work) == pytest.approx(1 + share * 4 / 6)
    for scale in (1.0, 0.5):
        policy = hard(scale=scale, **options)
        chosen(policy, noise(0), step=20 if "start_epoch" in options else 0)
        told = policy.log()
        assert told["hard/kept_all"] == pytest.approx(share * told["hard/kept"])


def test_pairs_that_do_not_overlap_at_all_overlap_least() -> None:
    """Several may: whichever was chosen, it is one of them."""
    settings = replace(SYMMETRIC, global_scale=(0.02, 0.05))
    policy = hard(settings, candidates=8)
    proposed, _ = chosen(policy, Scores(lambda c, views: (views.params.iou(*c) == 0) * float(len("".join(c)))))
    assert policy._last is not None
    assert describe(policy._last)["min_iou"] == 1.0
    disjoint = sum((proposed.iou(a, b) == 0).long() for a, b in policy.choices(0))
    assert (disjoint > 1).all()


def test_the_log_tells_how_much_of_the_chosen_pair_is_masked() -> None:
    """Here the further candidates are masked wholly, and the pair of both is the hardest."""
    policy = hard()
    chosen(policy, Scores(lambda choice, views: torch.full((6,), float(sum("." in name for name in choice)))))
    told = policy.log()
    assert told["hard/masked"] == 1.0
    assert told["hard/masked_others"] == pytest.approx((4 * 0.5 + 0) / 5)
    cheap = hard(scale=0.5)  # whose scores know no masks
    chosen(cheap, noise(0))
    assert "hard/masked" not in cheap.log()


@pytest.mark.parametrize("candidates", [2, 4])
def test_the_log_has_histograms_of_overlap(candidates: int) -> None:
    policy = hard(candidates=candidates)
    proposed, winners = chosen(policy, noise(3))
    told = policy.log()
    mine = winners.iou("global_a", "global_b")
    assert [told[f"hard/iou_bin/{k}"] for k in range(10)] == pytest.approx(np.histogram(mine, 10, (0, 1))[0] / 6)
    if candidates == 2:
        assert not any(name.startswith(("hard/iou_bin_others", "hard/iou_bin_first", "hard/corr")) for name in told)
        return
    first = np.histogram(proposed.iou("global_a", "global_b"), 10, (0, 1))[0] / 6
    assert [told[f"hard/iou_bin_first/{k}"] for k in range(10)] == pytest.approx(first)
    every = torch.cat([proposed.iou(a, b) for a, b in policy.choices(0)])
    others = (np.histogram(every, 10, (0, 1))[0] - np.histogram(mine, 10, (0, 1))[0]) / 30
    assert [told[f"hard/iou_bin_others/{k}"] for k in range(10)] == pytest.approx(others)


@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 5))
def test_rank_correlations_are_scipy_s(seed: int, pairs: int, levels: int) -> None:
    """Spearman's, of the ranks within each image; with ties, and with images in which a fact does not differ."""
    drawn = np.random.default_rng(seed)
    fact, scores = drawn.integers(0, levels, (pairs, 8)).astype(np.float32), drawn.normal(size=(pairs, 8))
    found = rank_correlations({"fact": torch.from_numpy(fact)}, torch.from_numpy(scores).float())
    if (fact == fact[0]).all():
        assert found == {}
    else:
        mine, theirs = ((x := rankdata(values, axis=0)) - x.mean(0) for values in (fact, scores))
        assert found["fact"] == pytest.approx(float(np.corrcoef(mine.flat, theirs.flat)[0, 1]), abs=1e-5)


def test_rank_correlations_know_no_hard_images() -> None:
    """How hard an image is as a whole says nothing about which of its pairs is."""
    fact = torch.tensor([[0.1, 0.9], [0.2, 1.0], [0.3, 1.1]])
    assert rank_correlations({"fact": fact}, 100 * fact.mean(0) - fact)["fact"] == pytest.approx(-1.0)


def test_a_pair_s_score_is_the_mean_over_its_local_views() -> None:
    """`choose`: a fact of the two global views is compared with what they cost by themselves."""
    policy = hard(MULTI_CROP, local_views="choose")
    chosen(policy, Scores(lambda c, views: views.params.iou(*c[:2]) + float("local_1.1" in c)))
    assert policy.log()["hard/corr/iou"] == pytest.approx(1.0)


def test_the_log_tells_what_was_chosen() -> None:
    """Scores by overlap: what is chosen overlaps least, every time."""
    policy = hard()
    chosen(policy, Scores(lambda choice, views: -views.params.iou(choice[0], choice[1])))
    assert policy._last is not None
    told = describe(policy._last)
    assert told["min_iou"] == 1.0
    assert told["iou"] < told["iou_others"]
    assert told["corr/iou"] == pytest.approx(-1.0)
    assert told["corr/distance"] > 0.5
    assert sum(value for name, value in told.items() if name.startswith("chosen/")) == pytest.approx(2.0)
    assert {f"hard/{name}" for name in told} | {"hard/fidelity", "hard/kept", "hard/kept_all"} == set(policy.log())
    assert policy.log() == {}


@pytest.mark.parametrize(
    ("work", "options", "factor"),
    [
        # Spec view_policies 1.5: ViT-S/16 at 224 px, DINO with 0, 8 and 10 local views of 96 px.
        (Work(2, 0, 0.176, True, 197, 384), {}, 2.00),
        (Work(2, 8, 0.176, True, 197, 384), {}, 1.65),
        (Work(2, 10, 0.176, True, 197, 384), {}, 1.60),
        (Work(2, 0, 0.176, True, 197, 384), {"reuse_teacher": True}, 1.75),
        (Work(2, 8, 0.176, True, 197, 384), {"reuse_teacher": True}, 1.49),
        (Work(2, 8, 0.176, True, 197, 384), {"local_views": "choose"}, 1.88),
        (Work(2, 0, 0.176, True, 197, 384), {"scale": 0.5}, 1.24),
        (Work(2, 8, 0.176, True, 197, 384), {"scale": 0.5}, 1.16),
        (Work(2, 8, 0.176, True, 197, 384), {"scale": 0.5, "every": 2}, 1.08),
        (Work(2, 8, 0.176, True, 197, 384), {"candidates": 8}, 2.31),
        (Work(2, 0, 0.0, False, 197, 384), {}, 1.67),
        (Work(2, 0, 0.0, False, 197, 384), {"fraction": 0.5, "every": 2}, 1.17),
    ],
)
def test_the_expected_cost_is_the_spec_s(work: Work, options: dict[str, object], factor: float) -> None:
    settings = replace(MULTI_CROP, locals=work.locals)
    assert hard(settings, **options).expected_cost(work) == pytest.approx(factor, abs=0.011)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_of_both_policies_stand_side_by_side() -> None:
    model = Hard.options_model({"inner": "random"})
    assert set(model.model_fields) >= set(Hard.Options.model_fields)
    with pytest.raises(UserError, match=r"views\.inner=hard"):
        Hard.options_model({"inner": "hard"})
    with pytest.raises(UserError, match=r"unknown policy 'randon': did you mean 'random'"):
        Hard.options_model({"inner": "randon"})


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (replace(SYMMETRIC, globals=3), {}, "views.globals must be 2, not 3"),
        (SYMMETRIC, {"reuse_teacher": True, "scale": 0.5}, "views.reuse_teacher"),
        (MULTI_CROP, {"scorer": "pooled", "local_views": "choose"}, "views.scorer=pooled: .* views.local_views=fixed"),
    ],
)
def test_what_cannot_be_is_refused(settings: ViewSettings, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        hard(settings, **options)


def test_it_is_a_plug_in() -> None:
    assert load("policy", "hard") is Hard
    assert resolve("simclr", {"views.policy": "hard", "views.candidates": 6}).config.views.policy == "hard"
