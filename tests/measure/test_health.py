"""Diagnostics: limits of the formulas, and the monitor's judgement of real good and broken signals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from belvedere.measure import health
from belvedere.measure.bands import RULES, Rule, rules_for
from belvedere.measure.monitor import HealthMonitor


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def natural(n: int, dim: int) -> torch.Tensor:
    """Features whose spectrum falls like 1/rank, as a healthy network's does."""
    return noise(n, dim) * torch.arange(1, dim + 1) ** -0.5


def test_isotropic_features() -> None:
    x = noise(2000, 16)
    assert health.feature_std(x) == pytest.approx(1, abs=0.02)
    assert health.mean_cosine(x) == pytest.approx(0, abs=0.01)
    assert health.rankme(x) == pytest.approx(16, abs=0.1)
    assert health.participation_ratio(health.covariance_spectrum(x)) == pytest.approx(16, abs=0.3)
    assert health.uniformity(x) == pytest.approx(-4 + 8 / 16, abs=0.1)


def test_constant_features() -> None:
    x = noise(1, 16).expand(100, 16)
    assert health.feature_std(x) == pytest.approx(0, abs=1e-6)
    assert health.mean_cosine(x) == pytest.approx(1)
    assert health.rankme(x) == pytest.approx(1, abs=1e-3)
    assert math.isfinite(health.rankme(torch.zeros(100, 16)))
    assert health.participation_ratio(health.covariance_spectrum(torch.zeros(100, 16))) == 0
    assert math.isnan(health.alpha_req(health.covariance_spectrum(torch.zeros(100, 16))).alpha)
    assert health.uniformity(x) == pytest.approx(0, abs=1e-6)
    assert health.instance_recall_at_1(torch.ones(100, 4), torch.ones(100, 4)) == 0.01
    assert math.isfinite(health.lidar(torch.ones(10, 3, 4)))


def test_power_law_is_found() -> None:
    spectrum = torch.arange(1, 401, dtype=torch.float64) ** -1.3
    fit = health.alpha_req(spectrum)
    assert fit.alpha == pytest.approx(1.3)
    assert fit.r2 == pytest.approx(1)
    assert math.isnan(health.alpha_req(spectrum[:6]).alpha)


def test_mean_cosine_is_the_mean_over_pairs() -> None:
    x = noise(20, 5) + 1
    rows = torch.nn.functional.normalize(x.double(), dim=1)
    pairs = (rows @ rows.T)[~torch.eye(20, dtype=torch.bool)]
    assert health.mean_cosine(x) == pytest.approx(pairs.mean().item())


def test_instance_recall() -> None:
    x = noise(50, 16)
    assert health.instance_recall_at_1(x, x + 0.01 * noise(50, 16, seed=1)) == 1
    assert health.instance_recall_at_1(x, x.roll(1, 0)) == 0


def test_attention_entropy_ends() -> None:
    assert health.attention_entropy(torch.full((2, 3, 9, 9), 1 / 9)).tolist() == pytest.approx([math.log(9)] * 3)
    assert health.attention_entropy(torch.eye(9).expand(2, 3, 9, 9)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.value}-{rule.worse}")
def test_every_rule_reaches_its_colours(rule: Rule) -> None:
    step = 1e-6 if rule.worse == "above" else -1e-6
    for color in ("amber", "red"):
        bound = getattr(rule, color)
        if math.isfinite(bound):
            assert rule.color(bound + step) == color
            assert rule.color(bound - step) != color
            said = rule.sentence(bound + step)
            assert said.startswith(rule.value)
            assert rule.advice in said


def run(monitor: HealthMonitor, start: int, stop: int, **values: float) -> None:
    for step in range(start, stop):
        monitor.step(step, values)


def test_a_good_run_is_green() -> None:
    monitor = HealthMonitor(1000, 100, math.log(256))
    run(monitor, 0, 50, loss=5.5)
    assert monitor.verdict().word == "too early"
    run(monitor, 50, 500, loss=3.0, kl=0.5, teacher_entropy=2.0, max_mean_prob=0.05, **{"grad/patch_embed": 0.1})
    x = natural(200, 32)
    values = monitor.probe(500, x, x + 0.1 * noise(200, 32, seed=1), head=noise(200, 64))
    assert values["head_std"] == pytest.approx(1, abs=0.05)
    verdict = monitor.verdict()
    assert (verdict.color, verdict.word) == ("green", "healthy"), verdict.sentences
    assert monitor.should_stop() is None


@pytest.mark.parametrize(("std", "color"), [(0.21, "green"), (0.12, "amber"), (0.08, "red")])
def test_features_that_are_hardly_spread_are_named(std: float, color: str) -> None:
    monitor = HealthMonitor(1000, 100)
    monitor.look({"step": 300, "feature_std": std})
    verdict = monitor.verdict()
    assert verdict.color == color
    assert ("feature_std" in verdict.sentences[0]) is (color != "green")
    assert (verdict.word == "narrow cone") is (color != "green")


def test_a_narrow_cone_is_no_fault_where_no_loss_compares_views() -> None:
    x = natural(200, 32) + 100
    for compares, color in ((True, "red"), (False, "green")):
        monitor = HealthMonitor(1000, 100, rules=rules_for(compares))
        run(monitor, 0, 500, loss=1.0)
        assert monitor.probe(500, x, x, head=x)["mean_cosine"] > 0.99
        assert monitor.verdict().color == color, monitor.verdict().sentences
        assert ("mean_cosine" in monitor.judged()) is compares


def test_bands_wait_for_a_tenth_of_training() -> None:
    monitor = HealthMonitor(1000, 100)
    run(monitor, 0, 99, loss=1.0, kl=0.0)
    assert monitor.verdict().color == "green"
    run(monitor, 99, 120, loss=1.0, kl=0.0)
    assert (monitor.verdict().color, monitor.verdict().word) == ("red", "constant output")


def test_constant_output_stops_after_200_steps_only() -> None:
    monitor = HealthMonitor(10_000, 100)
    run(monitor, 0, 150, loss=1.0, kl=0.0)
    run(monitor, 150, 151, loss=1.0, kl=0.5)
    run(monitor, 151, 351, loss=1.0, kl=0.0)
    assert monitor.should_stop() is None
    run(monitor, 351, 352, loss=1.0)  # a step without diagnostics neither breaks nor feeds the count
    reason = monitor.should_stop()
    assert reason is not None
    assert "constant from step 151" in reason


def test_non_finite_loss_is_red_at_once_and_stops_later() -> None:
    monitor = HealthMonitor(1000, 100)
    run(monitor, 0, 10, loss=1.0)
    run(monitor, 10, 11, loss=math.nan)
    assert (monitor.verdict().color, monitor.verdict().word) == ("red", "not finite")
    assert monitor.should_stop() is None
    run(monitor, 11, 211, loss=math.inf)
    assert "not finite from step 10" in str(monitor.should_stop())
    run(monitor, 211, 212, loss=1.0)
    assert monitor.should_stop() is None


def test_red_bands_do_not_stop() -> None:
    monitor = HealthMonitor(1000, 100)
    run(monitor, 0, 500, loss=1.0, negative_cosine=0.95, max_mean_prob=0.95)
    verdict = monitor.verdict()
    assert (verdict.color, verdict.word) == ("red", "one-dimensional collapse")
    assert len(verdict.sentences) == 2
    assert monitor.should_stop() is None


def test_uniform_collapse_and_a_loss_at_chance() -> None:
    monitor = HealthMonitor(1000, 100, math.log(4096))
    run(monitor, 0, 250, loss=8.3178, teacher_entropy=8.31, kl=0.01)
    words = " ".join(monitor.verdict().sentences)
    assert monitor.verdict().color == "red"
    assert "entropy_share" in words
    assert "loss_at_chance" in words


def test_probe_sees_a_cone_and_lost_rank() -> None:
    monitor = HealthMonitor(1000, 100)
    good = natural(200, 32)
    monitor.probe(300, good, good)
    assert monitor.verdict().color == "green"
    monitor.probe(400, good @ noise(32, 2) @ noise(2, 32) + 20, good)
    verdict = monitor.verdict()
    assert verdict.color == "red"
    told = {sentence.split()[0] for sentence in verdict.sentences}
    assert {"mean_cosine", "rankme_drop", "instance_drop", "uniformity"} <= told
    monitor.probe(500, good * torch.nan, good)
    assert monitor.verdict().word == "not finite"


def test_gradient_spikes() -> None:
    rng = np.random.default_rng(0)
    monitor = HealthMonitor(1000, 1000)
    norms = np.exp(rng.normal(size=300) * 0.3)
    norms[[230, 250]] = 15.0
    for step, norm in enumerate(norms):
        monitor.step(step, {"loss": 1.0, "grad/patch_embed": float(norm)})
    assert (monitor.verdict().color, monitor.verdict().word) == ("amber", "unstable")
    for step in (300, 301):
        monitor.step(step, {"loss": 1.0, "grad/patch_embed": 50.0 * (step - 298)})
    assert monitor.verdict().color == "red"


def test_steps_that_are_too_long() -> None:
    monitor = HealthMonitor(1000, 100)
    run(monitor, 0, 300, loss=1.0, patch_step=0.002)
    assert monitor.verdict().color == "green"
    run(monitor, 300, 450, loss=1.0, patch_step=0.2)
    verdict = monitor.verdict()
    assert (verdict.color, verdict.word) == ("red", "unstable")
    assert "freeze_patch" in verdict.sentences[0]


@pytest.mark.parametrize(("gap", "word"), [(0.0, "no teacher"), (0.1, "healthy"), (2.0, "teacher lags")])
def test_gap_of_teacher_and_student(gap: float, word: str) -> None:
    monitor = HealthMonitor(1000, 100)
    run(monitor, 0, 300, loss=1.0, teacher_gap=gap)
    assert monitor.verdict().word == word


def test_the_cause_is_named_before_its_consequences() -> None:
    monitor = HealthMonitor(1000, 100, math.log(256))
    run(monitor, 0, 300, loss=0.1, kl=0.0, teacher_entropy=0.1, mean_entropy_share=0.02, max_mean_prob=0.99)
    x = noise(1, 32).expand(200, 32)
    monitor.probe(300, x, x, head=x)
    assert monitor.verdict().word == "one-dimensional collapse"


def test_a_short_run_is_judged_by_its_newest_steps() -> None:
    monitor = HealthMonitor(100, 20)
    run(monitor, 0, 30, loss=1.0, projection_std=0.01)
    run(monitor, 30, 45, loss=1.0, projection_std=0.9)
    assert monitor.values()["projection_std"] == 0.9


def test_news_are_told_once() -> None:
    monitor = HealthMonitor(1000, 100)
    run(monitor, 0, 300, loss=1.0, max_mean_prob=0.1)
    assert monitor.news() is None
    run(monitor, 300, 450, loss=1.0, max_mean_prob=0.95)
    news = monitor.news()
    assert news is not None
    assert (news.color, news.word) == ("red", "one-dimensional collapse")
    assert monitor.news() is None
    resumed = HealthMonitor(1000, 100)
    resumed.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    run(resumed, 450, 700, loss=1.0, max_mean_prob=0.1)
    news = resumed.news()
    assert news is not None
    assert news.word == "healthy"


def test_gap_is_the_relative_distance_of_trained_weights() -> None:
    student, teacher = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    teacher.load_state_dict({name: 1.5 * x for name, x in student.state_dict().items()})
    assert health.relative_gap(teacher, student).item() == pytest.approx(0.5)
    assert health.relative_gap(student, student).item() == 0
    student.weight.requires_grad_(False)
    teacher.weight.data.fill_(100)
    assert health.relative_gap(teacher, student).item() == pytest.approx(0.5)


def test_a_leak_shows_in_the_first_epoch() -> None:
    monitor = HealthMonitor(1000, 100)
    run(monitor, 0, 60, loss=0.1, contrastive_accuracy=1.0)
    assert monitor.verdict().word == "leak"


def test_bad_views() -> None:
    monitor = HealthMonitor(1000, 100)
    x = noise(200, 16)
    for n in range(4):
        monitor.probe(300 + n, x + 0.4 * n, x + 0.4 * n + (0.1 + 0.4 * n) * noise(200, 16, seed=1))
    assert monitor.values()["both_rising"] == 1
    assert any(sentence.startswith("both_rising") for sentence in monitor.verdict().sentences)


def test_lidar_and_attention_are_judged_when_given() -> None:
    monitor = HealthMonitor(1000, 100)
    x, images = natural(200, 32), noise(50, 1, 32)
    sharp = torch.eye(17).expand(8, 2, 17, 17)
    monitor.probe(600, x, x, many=images + 0.1 * noise(50, 4, 32, seed=1), attention=torch.full((8, 2, 17, 17), 1 / 17))
    assert [said.split()[0] for said in monitor.verdict().sentences] == ["attention_min"]
    flat = images @ noise(32, 4) @ noise(4, 32)
    monitor.probe(700, x, x, many=flat + 0.1 * noise(50, 4, 32, seed=1), attention=sharp)
    assert {said.split()[0] for said in monitor.verdict().sentences} == {"attention_max", "lidar_drop"}


def test_resume_judges_alike() -> None:
    whole, half = HealthMonitor(1000, 100, 5.0), HealthMonitor(1000, 100, 5.0)
    rng = np.random.default_rng(0)
    feed = [{"loss": float(x), "kl": float(x) * 1e-3, "grad/patch_embed": float(x)} for x in rng.uniform(0.5, 1, 400)]
    for step in range(200):
        whole.step(step, feed[step])
        half.step(step, feed[step])
    for monitor in (whole, half):
        monitor.probe(200, noise(50, 8), noise(50, 8, seed=1))
    resumed = HealthMonitor(1000, 100, 5.0)
    resumed.load_state_dict(json.loads(json.dumps(half.state_dict())))
    for step in range(200, 400):
        whole.step(step, feed[step])
        resumed.step(step, feed[step])
    assert whole.verdict() == resumed.verdict()
    assert whole.should_stop() == resumed.should_stop() is not None
    assert whole.state_dict() == resumed.state_dict()
