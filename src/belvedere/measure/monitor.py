"""Is the run healthy? Values that need no labels, judged in words (spec evaluation, section 3).

Colours advise and never end a run: only output that is constant or not finite over 200 steps does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from torch import Tensor

from belvedere.measure import health
from belvedere.measure.bands import CONSTANT, RULES, SETTLED, Color, Rule

STOP_AFTER = 200
"""Steps of constant or non-finite output that end a run."""
SPIKE, RUNNING, SPIKE_WINDOW = 10, 20, 500
"""A gradient spike is so many times the median of so many steps; spikes are counted over so many steps."""
FEWEST = 3
"""Newest values of a step's scalar that are judged by their median, where a tenth of the run holds no more."""
_PATCH_GRADIENT = "grad/patch_embed"


@dataclass(frozen=True)
class Verdict:
    """The worst colour, its rule's word, and one sentence for every value that is not green."""

    color: Color
    word: str
    sentences: list[str]


class HealthMonitor:
    """Collects a run's values and judges them; its state is plain numbers, so that a resumed run judges alike."""

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        chance_loss: float | None = None,
        rules: Sequence[Rule] = RULES,
    ) -> None:
        """Begin.

        Args:
            chance_loss: the loss of a network that tells nothing: ln K of DINO's prototypes, ln(2N-1) of SimCLR.
            rules: what judges the values.
        """
        self.rules = rules
        self.total_steps, self.steps_per_epoch, self.chance_loss = total_steps, steps_per_epoch, chance_loss
        self._steps: list[dict[str, float]] = []
        self._probes: list[dict[str, float]] = []
        self._first_epoch_accuracy: list[float] = []
        self._spikes: list[int] = []
        # Step since which every report was constant, and not finite.
        self._since: dict[str, int] = {}
        # Word of the red verdict that was told last, empty when it was not red.
        self._alarm = ""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's scalars, those that are known: `loss`, `grad/patch_embed`, the objective's `diagnose`."""
        self._count("not finite", step, not math.isfinite(values.get("loss", 0.0)))
        told = [rule for rule in CONSTANT if rule.value in values]
        if told:
            self._count("constant", step, any(rule.color(values[rule.value]) == "red" for rule in told))
        if _PATCH_GRADIENT in values and self._is_spike(values[_PATCH_GRADIENT]):
            self._spikes.append(step)
        if step < self.steps_per_epoch and "contrastive_accuracy" in values:
            self._first_epoch_accuracy.append(values["contrastive_accuracy"])
        self._steps.append({"step": step, **values})
        self._steps = [old for old in self._steps if old["step"] > step - STOP_AFTER]
        self._spikes = [old for old in self._spikes if old > step - SPIKE_WINDOW]

    def _count(self, what: str, step: int, present: bool) -> None:
        if present:
            self._since.setdefault(what, step)
        else:
            self._since.pop(what, None)

    def _is_spike(self, norm: float) -> bool:
        """Not finite, or above ten times the running median (spec objectives 8).

        The median is of few steps, since a run's gradients may fall a hundredfold within its first two hundred.
        """
        known = [old[_PATCH_GRADIENT] for old in self._steps if math.isfinite(old.get(_PATCH_GRADIENT, math.nan))]
        return not math.isfinite(norm) or (len(known) >= RUNNING and norm > SPIKE * median(known[-RUNNING:]))

    def probe(
        self,
        step: int,
        a: Tensor,
        b: Tensor,
        *,
        head: Tensor | None = None,
        attention: Tensor | None = None,
        many: Tensor | None = None,
    ) -> dict[str, float]:
        """Take features of the fixed probe set and return the values for the log.

        Args:
            a, b: (N, D) features of the two fixed augmentations of the same images.
            head: (N, K) outputs of the head for `a`; collapse shows there first.
            attention: (N, heads, tokens, tokens) of the last block for some of the images.
            many: (n, q, D) features of q views each of some images, for LiDAR.
        """
        if not (a.isfinite().all() and b.isfinite().all()):
            return self.look({"step": step, "finite": 0.0})
        spectrum = health.covariance_spectrum(a)
        fit = health.alpha_req(spectrum)
        values = {
            "step": step,
            "feature_std": health.feature_std(a),
            "mean_cosine": health.mean_cosine(a),
            "rankme": health.rankme(a),
            "rankme_centred": health.rankme(a, centred=True),
            "participation_ratio": health.participation_ratio(spectrum),
            "alpha_req_fit": fit.alpha,
            "alpha_req_r2": fit.r2,
            "alignment": health.alignment(a, b),
            "uniformity": health.uniformity(a),
            "instance_recall": health.instance_recall_at_1(a, b),
        }
        values["rankme_share"] = values["rankme"] / min(a.shape)
        if fit.r2 >= 0.9:  # a spectrum that is no power law has no exponent worth judging
            values["alpha_req"] = fit.alpha
        if head is not None:
            values["head_std"] = health.feature_std(head)
        if many is not None:
            values["lidar"] = health.lidar(many)
        if attention is not None:
            share = health.attention_entropy(attention) / math.log(attention.shape[-1])
            values["attention_max"], values["attention_min"] = share.max().item(), share.min().item()
        return self.look(values)

    def look(self, values: Mapping[str, float]) -> dict[str, float]:
        """Take the values of a look, as `probe` computes them, and return those that are finite."""
        self._probes.append({name: x for name, x in values.items() if math.isfinite(x)})
        return self._probes[-1]

    def values(self) -> dict[str, float]:
        """What the rules judge: medians of the newest steps, the last probe, and changes along the run."""
        names = {name for record in self._steps for name in record}
        found = {name: median(known) for name in sorted(names - {"step"}) if (known := self._newest(name))}
        found["gradient_spikes"] = float(len(self._spikes))
        if self._first_epoch_accuracy:
            found["first_epoch_accuracy"] = fmean(self._first_epoch_accuracy)
        if self.chance_loss and "teacher_entropy" in found:
            # An objective whose loss has other terms too reports the share itself.
            found.setdefault("entropy_share", found["teacher_entropy"] / self.chance_loss)
        if self.chance_loss and "loss" in found and self._last_step >= 2 * self.steps_per_epoch:
            found["loss_at_chance"] = float(abs(found["loss"] / self.chance_loss - 1) < 0.002)
        if self._probes:
            found |= self._probes[-1] | self._changes()
        return found

    def _newest(self, name: str) -> list[float]:
        """Finite values of the last 200 steps, in a short run of its last tenth: older ones are of another network."""
        known = [(old["step"], old[name]) for old in self._steps if name in old and math.isfinite(old[name])]
        since = self._last_step - SETTLED * self.total_steps
        return [x for i, (step, x) in enumerate(known) if step > since or i >= len(known) - FEWEST]

    def _changes(self) -> dict[str, float]:
        last, changes = self._probes[-1], {}
        # The untrained network's values are no best to fall from.
        settled = [old for old in self._probes if old["step"] >= SETTLED * self.total_steps]
        for name, drop in (("rankme", "rankme_drop"), ("lidar", "lidar_drop"), ("instance_recall", "instance_drop")):
            best = max((old.get(name, 0.0) for old in settled), default=0.0)
            if name in last and best > 0:
                changes[drop] = 1 - last[name] / best
        lately = [old for old in self._probes[-4:] if "alignment" in old and "uniformity" in old]
        if len(lately) == 4:
            rises = (new[name] > old[name] for old, new in pairwise(lately) for name in ("alignment", "uniformity"))
            changes["both_rising"] = float(all(rises))
        return changes

    @property
    def _last_step(self) -> int:
        return int(max([old["step"] for old in self._steps[-1:] + self._probes[-1:]], default=0))

    def verdict(self) -> Verdict:
        """Judge all rules that apply now; green with the word "healthy" or "too early" when none objects."""
        if "not finite" in self._since or (self._probes and self._probes[-1].get("finite") == 0.0):
            said = "The output is not finite: lower the learning rate, or clip gradients."
            return Verdict("red", "not finite", [said])
        progress = min(1.0, (self._last_step + 1) / self.total_steps)
        values = self.values()
        judged = [(rule, values[rule.value]) for rule in self.rules if rule.value in values]
        applying = [(rule, x) for rule, x in judged if rule.start <= progress <= rule.until]
        found = [(rule, x) for rule, x in applying if rule.color(x) != "green"]
        if found:
            found.sort(key=lambda one: one[0].color(one[1]) != "red")
            worst, x = found[0]
            return Verdict(worst.color(x), worst.word, [rule.sentence(x) for rule, x in found])
        if progress < SETTLED:
            return Verdict("green", "too early", [f"Most bands apply from {SETTLED:.0%} of training on."])
        return Verdict("green", "healthy", ["All values lie within their bands."])

    def judged(self) -> dict[str, float]:
        """The values that rules exist for, as they are judged now."""
        values = self.values()
        return {rule.value: values[rule.value] for rule in self.rules if rule.value in values}

    def news(self) -> Verdict | None:
        """The verdict if it turned red, got another red word or stopped being red since this was last asked."""
        verdict = self.verdict()
        alarm = verdict.word if verdict.color == "red" else ""
        changed, self._alarm = alarm != self._alarm, alarm
        return verdict if changed else None

    def should_stop(self) -> str | None:
        """Why the run should end now, or None: output constant or not finite over 200 steps."""
        for what, since in self._since.items():
            if self._last_step - since >= STOP_AFTER:
                return f"the output was {what} from step {since} to step {self._last_step}"
        return None

    def state_dict(self) -> dict[str, Any]:
        """All that was collected, as lists and dicts of numbers."""
        return {
            "steps": [dict(old) for old in self._steps],
            "probes": [dict(old) for old in self._probes],
            "first_epoch_accuracy": list(self._first_epoch_accuracy),
            "spikes": list(self._spikes),
            "since": dict(self._since),
            "alarm": self._alarm,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            Exception: when it is anything else.
        """
        self._steps, self._probes = (
            [{"step": old["step"], **plain_numbers(old)} for old in state[name]] for name in ("steps", "probes")
        )
        self._first_epoch_accuracy = [float(x) for x in state["first_epoch_accuracy"]]
        self._spikes, self._alarm = [int(step) for step in state["spikes"]], str(state["alarm"])
        self._since = {str(what): int(step) for what, step in state["since"].items()}


def plain_numbers(found: Mapping[str, float]) -> dict[str, float]:
    """The numbers that a checkpoint holds by name.

    Raises:
        TypeError: when some are none.
    """
    if not all(isinstance(name, str) and isinstance(x, int | float) for name, x in found.items()):
        raise TypeError("some numbers are none")
    return dict(found)
