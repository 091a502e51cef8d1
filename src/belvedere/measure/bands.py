"""The bands of the health page: which value means what, and what to change (spec evaluation 3; objectives 5.7, 8).

They start from the formulas' limits and were calibrated on healthy and deliberately broken runs of all objectives with
small transformers on tiles of photographs, several seeds each (benchmarks/health.py and its JSON), and on a healthy
SimCLR run on CIFAR-10. A value compares along one run, or between runs of equal width, probe size and reading; higher
is not better by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Color = Literal["green", "amber", "red"]
COLORS: tuple[Color, ...] = get_args(Color)
SETTLED = 0.1
"""Share of training after which bands apply: before it every network looks odd."""
UNDER, OVER = -math.inf, math.inf
"""No band at this end."""


@dataclass(frozen=True)
class Rule:
    """One band: the value's name, the diagnosis in a word or two, and where amber and red begin.

    `meaning` and `advice` are the sentence that the user reads; the rule applies from the share `start` of training
    to `until`.
    """

    value: str
    word: str
    worse: Literal["above", "below"]
    amber: float
    red: float
    meaning: str
    advice: str
    start: float = SETTLED
    until: float = 1.0

    def color(self, x: float) -> Color:
        """The band in which x lies."""
        sign = 1 if self.worse == "above" else -1
        if sign * x > sign * self.red:
            return "red"
        return "amber" if sign * x > sign * self.amber else "green"

    def sentence(self, x: float) -> str:
        """What x, outside the green band, means and what to change."""
        bound = self.red if self.color(x) == "red" else self.amber
        return f"{self.value} is {x:.3g} ({self.worse} {bound:g}): {self.meaning}; {self.advice}."


_CALM = "lower the learning rate or lengthen its warm-up"
_COLLAPSE = f"{_CALM}; for a method without negatives check its stop-gradient, predictor, centring and temperatures"
_BACK = "go back to the best checkpoint, or lower the learning rate"
_EASIER = "weaken the augmentation (larger crops, less colour jitter)"
_HARDER = "strengthen the augmentation (smaller crops, more colour jitter)"
_CENTRE = (
    "centre the teacher (objective.centering=sinkhorn, or objective.center_momentum below 1), or use more prototypes"
)
_STEADY = f"freeze the patch projection (backbone.freeze_patch=true), {_CALM}, or clip gradients"

# In the order in which they are named: what points at a cause stands before what only tells that something is wrong.
# fmt: off
RULES = (
    # From the steps.
    Rule("entropy_share", "uniform collapse", "above", 0.99, 0.997,
         "the teacher spreads its answer evenly over all prototypes", "lower the teacher's temperature (sharpen)"),
    Rule("mean_entropy_share", "one-dimensional collapse", "below", 0.5, 0.4,
         "the teacher gives nearly the same answer to every image", _CENTRE),
    Rule("max_mean_prob", "one-dimensional collapse", "above", 0.5, 0.9,
         "one prototype takes most of the images", _CENTRE),
    Rule("patch_max_mean_prob", "patch collapse", "above", 0.5, 0.9,
         "one prototype takes most of the patches", _CENTRE),
    Rule("patch_entropy_share", "patch collapse", "above", 0.99, 0.997,
         "the teacher spreads its answer for patches evenly over all prototypes",
         "lower the patches' teacher temperature (objective.patch_teacher_temp)"),
    Rule("patch_step", "unstable", "above", 0.015, 0.02,
         "one step moves the patch embedding by a large share of its length", _STEADY),
    Rule("gradient_spikes", "unstable", "above", 1.5, 2.5,
         "the gradient of the patch embedding jumped within the last 500 steps", _STEADY),
    Rule("projection_std", "constant output", "below", 0.3, 0.05,
         "the projections of different images are nearly the same", _COLLAPSE),
    Rule("projection_rank", "constant output", "below", 2.5, 2.2,
         "the projections of all images lie on one line", _COLLAPSE),
    Rule("prediction_std", "constant output", "below", 0.2, 0.02,
         "the predictions for different images are nearly the same", _COLLAPSE),
    Rule("kl", "constant output", "below", UNDER, 1e-3,
         "student and teacher agree whatever the image", _COLLAPSE),
    Rule("negative_cosine", "constant output", "above", 0.9, 0.999,
         "different images are embedded alike", _COLLAPSE),
    Rule("teacher_gap", "no teacher", "below", UNDER, 1e-6,
         "teacher and student have the same weights", "raise the teacher's momentum (objective.momentum)"),
    Rule("teacher_gap", "teacher lags", "above", 0.6, 2.0,
         "the teacher's weights are far from the student's", f"lower the teacher's momentum, or {_CALM}"),
    Rule("loss_at_chance", "not learning", "above", OVER, 0.5,
         "after two epochs the loss is still that of a guess", f"{_CALM}, and look at the view grid"),
    Rule("first_epoch_accuracy", "leak", "above", 0.999, OVER,
         "every view found its partner in the first epoch already",
         f"look for duplicate images, or {_HARDER}", start=0.0),
    Rule("policy/dead_views", "blank views", "above", 0.01, 0.05,
         "the learned view policy blanks images, so nothing can be learned from them", "lower views.retention"),
    Rule("policy/l_reg_share", "views too hard", "above", 0.8, OVER,
         "views can hardly be told to be of their own image", "lower views.retention"),
    Rule("policy/apply", "policy at its bound", "above", 0.95, OVER,
         "the learned policy would apply more operations than it may", "lower views.retention"),
    Rule("policy/apply", "policy at its bound", "below", 0.05, UNDER,
         "the learned policy would apply fewer operations than it may", "raise views.retention"),
    Rule("policy/at_bound", "policy at its bound", "above", 0.1, OVER,
         "operations are as strong or as weak as the learned policy may make them",
         "lower views.retention if the report shows their strengths near 1, raise it if near 0"),
    # From the probe set, once in a while.
    Rule("head_std", "collapsing", "below", 0.2, 0.1,
         "the head gives nearly the same output for every image", _COLLAPSE),
    Rule("mean_cosine", "narrow cone", "above", 0.95, 0.985,
         "features of different images point the same way", _COLLAPSE),
    Rule("feature_std", "narrow cone", "below", 0.15, 0.1,
         "features of different images are nearly the same", _COLLAPSE),
    Rule("rankme_share", "low rank", "below", 0.03, 0.02,
         "features use few of the directions they have", _COLLAPSE),
    Rule("rankme_drop", "losing rank", "above", 0.35, 0.6,
         "features use fewer directions than at the run's best", _BACK),
    Rule("lidar_drop", "losing rank", "above", 0.3, OVER,
         "fewer directions tell images apart than at the run's best", _BACK),
    Rule("alpha_req", "low-rank drift", "above", 5.0, OVER,
         "the spectrum falls steeply, a few directions carry everything", _HARDER),
    Rule("alpha_req", "noise-like", "below", 0.5, UNDER,
         "the spectrum is nearly flat, like noise", _CALM),
    Rule("uniformity", "not spread out", "above", -0.2, -0.1,
         "features fill little of the sphere", _COLLAPSE),
    Rule("both_rising", "bad views", "above", 0.5, OVER,
         "the views of an image drift apart while features draw together", _EASIER),
    Rule("instance_recall", "views too easy", "above", 0.98, OVER,
         "this early the two views of an image already find each other", _HARDER, until=0.25),
    Rule("instance_drop", "losing instances", "above", 0.6, 0.9,
         "images find their own second view less often: too much invariance, or collapse", _EASIER, start=0.25),
    Rule("attention_max", "attention collapse", "below", 0.05, 0.02,
         "every head of the last block looks at one token only", f"{_CALM}, or clip gradients"),
    Rule("attention_min", "attention unused", "above", 0.99, OVER,
         "every head of the last block looks everywhere alike", "train longer, or raise the learning rate", start=0.5),
)
# fmt: on

# What a step shows when its output no longer depends on the image.
CONSTANT = tuple(rule for rule in RULES if rule.word == "constant output")
# How far images lie apart on the sphere means something where a loss draws them apart; a task alone, such as painting
# missing patches, leaves them all near one direction and is none the worse for it.
OF_COMPARED_VIEWS = ("head_std", "mean_cosine", "feature_std", "uniformity", "both_rising")


def rules_for(compares_views: bool) -> tuple[Rule, ...]:
    """The rules that judge a run whose objective compares views, or has no loss of its own."""
    return RULES if compares_views else tuple(rule for rule in RULES if rule.value not in OF_COMPARED_VIEWS)
