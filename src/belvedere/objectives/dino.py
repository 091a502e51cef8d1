"""DINO: the student's softmax over prototypes on every view matches a centred, sharpened EMA teacher's on the globals.

"Emerging Properties in Self-Supervised Vision Transformers", Caron et al., ICCV 2021, arXiv:2104.14294 (spec
objectives 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from belvedere.derive import LARGE
from belvedere.objectives._ema import ema_update, paced_momentum
from belvedere.objectives._heads import PrototypeHead
from belvedere.objectives._options import Auto, AutoOptions, Count, NotNegative, Positive, Share
from belvedere.objectives._pairs import every_global_from_every_other
from belvedere.objectives._sinkhorn import sinkhorn
from belvedere.objectives.contract import Embeddings, Objective, Output, Term, is_global, told
from belvedere.schedules import Clock, cosine, ramp


class DinoOptions(AutoOptions):
    """Settings of DINO; the defaults are the paper's code's."""

    prototypes: Annotated[int, Field(ge=2)] | Auto = "auto"
    """K, outputs of the head."""
    student_temp: float = Field(0.1, gt=0)
    centering: Literal["mean", "sinkhorn", "auto"] = "auto"
    """What keeps the teacher from one prototype for all: the mean of its logits taken off, as the paper; or equal
    shares of every micro-batch for all prototypes, as DINOv2."""
    teacher_temp: Positive | Auto = "auto"
    """Reached after the warm-up; above .07 training is unstable."""
    warmup_teacher_temp: Positive | Auto = "auto"
    """At the first step."""
    teacher_temp_warmup: NotNegative | Auto = "auto"
    """Epochs of the warm-up."""
    teacher_temp_by: Literal["epoch", "step", "auto"] = "auto"
    """Raise the temperature once an epoch, as the paper's code, or every step."""
    center_momentum: float = Field(0.9, ge=0, le=1)
    center_on: Literal["globals", "all"] = "globals"
    """Views whose teacher logits the centre is the mean of; SelfPatch's code takes local views too."""
    momentum: Share | Auto = "auto"
    """m0 of the teacher's EMA; rises to 1 on a cosine over the run."""
    hidden: Count | Auto = "auto"
    """Width of the head's hidden layers."""
    bottleneck: int = Field(256, ge=1)
    layers: int = Field(3, ge=1)
    use_bn: bool | Auto = "auto"
    """BatchNorm in the head."""
    norm_last_layer: bool | Auto = "auto"
    """Freeze the norms of the prototypes at 1; False is recommended for ViT-S only."""
    freeze_last_layer: NotNegative | Auto = "auto"
    """Epochs (fractions allowed) in which the prototypes do not move."""


class Dino(Objective):
    """Cross-entropy between the teacher's distribution of a global view and the student's of every other view."""

    Options = DinoOptions
    has_teacher = True
    evaluates: ClassVar[Literal["student", "teacher"]] = "teacher"
    paper_teacher_temp: ClassVar[float] = 0.04
    paper_norm_last_layer: ClassVar[bool] = True
    center: Tensor

    def __init__(self, options: DinoOptions, dim: int) -> None:
        """Make the centre c = 0, (1, K).

        Raises:
            UserError: when an option is still "auto".
        """
        super().__init__(options, dim)
        options.require_settled()
        self.prototypes = int(options.prototypes)
        self.register_buffer("center", torch.zeros(1, self.prototypes))

    @classmethod
    def derive(cls, options: Mapping[str, Any], facts: Any) -> dict[str, tuple[Any, str]]:
        """Prototypes from the images; temperature warm-up, EMA momentum and frozen last layer from the run's length."""
        rules: dict[str, tuple[Any, str]] = {
            "prototypes": prototypes_for(facts.images),
            "centering": _centering(facts.images),
        }
        few = facts.images < LARGE
        rules["use_bn"] = (True, "under 100,000 images: learns sooner") if few else (False, "the paper's")
        temperature, normed = facts.paper.teacher_temp, facts.paper.norm_last_layer
        temperature = cls.paper_teacher_temp if temperature is None else temperature
        normed = cls.paper_norm_last_layer if normed is None else normed
        rules["norm_last_layer"] = normed, "the paper's"
        if few and not normed:
            rules["norm_last_layer"] = True, "under 100,000 images: learns sooner"
        centering = options.get("centering", "auto")
        sharp = (rules["centering"][0] if centering == "auto" else centering) == "sinkhorn"
        rules["teacher_temp"] = (0.02, "equal shares bear a sharper teacher") if sharp else (temperature, "the paper's")
        given = options.get("teacher_temp", "auto")
        rules["warmup_teacher_temp"] = (
            min(0.04, rules["teacher_temp"][0] if given == "auto" else given),
            "the paper's, and not above objective.teacher_temp",
        )
        if facts.dim is not None:
            rules["hidden"] = min(2048, round(2048 * facts.dim / 384)), "2048 for the paper's 384-wide ViT-S and above"
        if facts.steps is not None:
            rules["momentum"] = paced_momentum(facts.steps, 0.996, 125_000)  # 100 epochs at batch 1024
        if facts.epochs is not None:
            rules["teacher_temp_warmup"] = (
                round(min(30.0, 0.1 * facts.epochs), 3),
                "10 % of the run, at most 30 epochs",
            )
            rules["teacher_temp_by"] = _temp_by(facts.epochs)
            rules["freeze_last_layer"] = (round(min(1.0, 0.01 * facts.epochs), 4), "1 % of the run, at most 1 epoch")
        return rules

    def make_head(self) -> nn.Module:
        """Features -> {"cls": (N, K)} logits."""
        o = self.options
        return PrototypeHead(
            self.dim,
            self.prototypes,
            hidden=int(o.hidden),
            bottleneck=o.bottleneck,
            layers=o.layers,
            use_bn=bool(o.use_bn),
            norm_last_layer=bool(o.norm_last_layer),
        )

    def teacher_temp(self, clock: Clock) -> float:
        """T_t of this step."""
        return teacher_temp(self.options, clock)

    def embed(
        self, online: Mapping[str, Output], target: Mapping[str, Output], clock: Clock, labels: Tensor | None = None
    ) -> Embeddings:
        """Log-probabilities of the student, centred and sharpened probabilities of the teacher, in float32."""
        temperature = self.teacher_temp(clock)
        logits = {slot: output["cls"].detach().float() for slot, output in target.items()}
        rows = torch.cat(list(logits.values()))
        targets = {slot: found for slot, found in logits.items() if is_global(slot)}
        prob = assignments(self.options, targets, self.center, temperature)
        return Embeddings(
            online={
                slot: {"log_prob": torch.log_softmax(output["cls"].float() / self.options.student_temp, dim=-1)}
                for slot, output in online.items()
            },
            target={slot: {"prob": found} for slot, found in prob.items()},
            settings={"teacher_temp": temperature, "momentum": self.momentum(clock)},
            stats={"center_sum": rows.sum(0, keepdim=True), "center_rows": rows.new_tensor(float(len(rows)))},
        )

    def is_target(self, slot: str) -> bool:
        """Global views, and the local ones too where the centre is their mean as well."""
        return is_global(slot) or (self.options.center_on == "all" and self.options.centering == "mean")

    def terms(self, slots: Sequence[str]) -> list[Term]:
        """Every global view as target of every other view, equal weights: 1/(2(L+1)) with two globals and L locals."""
        return every_global_from_every_other(slots)

    def pair_loss(self, e: Embeddings, target: str, source: str) -> Tensor:
        """(B,) cross-entropy -sum_k P_k log softmax(s/T_s)_k (spec 5.1)."""
        return -(e.target[target]["prob"] * e.online[source]["log_prob"]).sum(-1)

    @torch.no_grad()
    def after_step(
        self, student: nn.Module, teacher: nn.Module | None, clock: Clock, stats: Mapping[str, Tensor]
    ) -> None:
        """Teacher's EMA with this step's m; centre from all raw teacher rows of the global batch (spec 5.2)."""
        assert teacher is not None
        ema_update(student, teacher, self.momentum(clock))
        self.move_center(stats)

    @torch.no_grad()
    def move_center(self, stats: Mapping[str, Tensor]) -> None:
        """c <- m c + (1-m) mean of the teacher's rows."""
        self.center.lerp_(stats["center_sum"] / stats["center_rows"], 1 - self.options.center_momentum)

    def momentum(self, clock: Clock) -> float:
        """m of this step: a cosine from m0 to 1 over all steps."""
        return cosine(clock.step, clock.total_steps, float(self.options.momentum), 1.0)

    def frozen(self, clock: Clock) -> tuple[str, ...]:
        """The last layer in the first epochs (spec 5.4)."""
        return ("head.last_layer",) if clock.epoch < float(self.options.freeze_last_layer) else ()

    def chance_loss(self, batch: int) -> float | None:
        """ln K: the teacher's and the student's distributions are uniform."""
        return math.log(self.prototypes)

    @torch.no_grad()
    def diagnose(self, e: Embeddings) -> dict[str, Tensor]:
        """Entropies, KL, use of the prototypes and size of the centre, which tell the collapses apart (5.7); m and T_t.

        `mean_entropy_share` is the entropy of the batch's mean answer, 1 where answers are as varied as K and the batch
        allow, 0 where all are the same.
        """
        prob = torch.cat([output["prob"] for output in e.target.values()])
        log_prob = torch.cat([output["log_prob"] for slot, output in e.online.items() if is_global(slot)])
        teacher_entropy = torch.special.entr(prob).sum(-1).mean()
        used = prob.new_zeros(prob.shape[1]).scatter_(0, prob.argmax(-1), 1.0).sum()
        return {
            "teacher_entropy": teacher_entropy,
            "student_entropy": -(log_prob.exp() * log_prob).sum(-1).mean(),
            "kl": self.per_image(e).mean() - teacher_entropy,
            "max_mean_prob": prob.mean(0).max(),
            "mean_entropy_share": (torch.special.entr(prob.mean(0)).sum() / math.log(max(2, min(prob.shape)))).clamp(
                max=1
            ),
            "center_max": self.center.abs().max(),
            "distinct_argmax": used / min(prob.shape),
            "momentum": told(e, "momentum", prob),
            "teacher_temp": told(e, "teacher_temp", prob),
        }


def teacher_temp(options: DinoOptions, clock: Clock) -> float:
    """T_t of a step."""
    return warmed(options, clock, float(options.warmup_teacher_temp), float(options.teacher_temp))


def warmed(options: DinoOptions, clock: Clock, start: float, end: float, delay: float = 0.0) -> float:
    """A temperature of a step: after `delay` epochs a straight line over the warm-up, then `end` (spec 1.5)."""
    length = float(options.teacher_temp_warmup)
    if options.teacher_temp_by == "step":
        return ramp(max(0.0, clock.epoch - delay), length, start, end)
    epoch = max(0, clock.step // clock.steps_per_epoch - round(delay))
    return ramp(epoch, round(length), start, end, points=round(length))


def assignments(
    options: DinoOptions, logits: Mapping[str, Tensor], center: Tensor, temperature: float
) -> dict[str, Tensor]:
    """A teacher's probabilities of every slot from its logits (n, K), sharpened and kept from collapse."""
    if options.centering == "mean":
        return {slot: torch.softmax((rows - center) / temperature, dim=-1) for slot, rows in logits.items()}
    shares = sinkhorn(torch.cat(list(logits.values())) / temperature)
    parts = torch.split(shares, [len(rows) for rows in logits.values()])
    return dict(zip(logits, parts, strict=True))


def prototypes_for(images: int) -> tuple[int, str]:
    """K that the images bear, and why."""
    power = round(math.log2(max(images, 1) / 20))
    return min(65536, max(256, 2**power)), "about one for 20 images, a power of two from 256 to 65536"


def _centering(images: int) -> tuple[str, str]:
    if images >= LARGE:
        return "mean", "the paper's"
    return "sinkhorn", "under 100,000 images: short runs leave most prototypes unused otherwise"


def _temp_by(epochs: float) -> tuple[str, str]:
    if epochs >= 100:
        return "epoch", "as the paper's code"
    return "step", "a warm-up of under 10 epochs would rise in few stairs"
