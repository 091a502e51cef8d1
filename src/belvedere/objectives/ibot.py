"""iBOT: DINO on class tokens, and the same self-distillation on masked patches, whose targets the teacher makes.

"iBOT: Image BERT Pre-Training with Online Tokenizer", Zhou et al., ICLR 2022, arXiv:2111.07832 (spec objectives 6).
The student sees its global views masked, for both losses; the teacher sees them whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.objectives._heads import PrototypeHead, WeightNormLinear
from belvedere.objectives._options import Auto, NotNegative, Positive, Share
from belvedere.objectives.contract import Embeddings, Output, Term, is_global, told
from belvedere.objectives.dino import Dino, DinoOptions, assignments, warmed
from belvedere.schedules import Clock
from belvedere.views.masks import MaskLaw, Shape

# The paper's K, of the class token and of the patches.
MOST_PROTOTYPES = 8192
PAPER_MASKS = [0.0, 0.3]


class IbotOptions(DinoOptions):
    """Settings of iBOT: DINO's for the class token, and its own; the defaults are the paper's."""

    use_bn: Literal[False] = False
    """Not to be had: class tokens, masked patches and all patches would each have batch statistics of their own."""
    center_on: Literal["globals"] = "globals"
    """The paper's; local views have no patch targets."""
    shared_head: bool = True
    """One last layer for class token and patches, of student and teacher alike."""
    patch_prototypes: Annotated[int, Field(ge=2)] | Auto = "auto"
    """K2, outputs of the head for a patch; those of the class token where the last layer is shared."""
    lambda1: NotNegative = 1.0
    """Weight of the loss of the class tokens."""
    lambda2: NotNegative = 1.0
    """Weight of the loss of the patches."""
    patch_teacher_temp: Positive | Auto = "auto"
    """Reached after the same warm-up as the class token's, which begins with the masks."""
    warmup_patch_teacher_temp: Positive | Auto = "auto"
    patch_center_momentum: float = Field(0.9, ge=0, le=1)
    mask_shape: Shape = "block"
    """block | random, or by the teacher's attention: high | hint | low."""
    mask_ratio: Annotated[tuple[Share, ...], Field(min_length=1)] | Auto = "auto"
    """One of these is picked for each view and image: the share of patches to mask."""
    mask_ratio_var: tuple[NotNegative, ...] | Auto = "auto"
    """One for each mask_ratio: the share is uniform within this distance of it."""
    mask_start: NotNegative | Auto = "auto"
    """Epochs before the first patch is masked."""

    @field_validator("patch_prototypes")
    @classmethod
    def _as_many_when_shared(cls, value: int | str, info: ValidationInfo) -> int | str:
        prototypes = info.data.get("prototypes")
        given = "auto" not in (value, prototypes)
        if info.data.get("shared_head") and given and value != prototypes:
            raise ValueError(f"as many as objective.prototypes={prototypes}, or objective.shared_head=false")
        return value

    @field_validator("mask_ratio_var")
    @classmethod
    def _a_law(cls, value: tuple[float, ...] | str, info: ValidationInfo) -> tuple[float, ...] | str:
        ratio = info.data.get("mask_ratio")
        if ratio is not None and not isinstance(value, str) and ratio != "auto":
            try:
                MaskLaw("block", ratio, value)
            except ValueError:
                raise ValueError(
                    f"a list as long as objective.mask_ratio={list(ratio)} with ratio - var and ratio + var in 0 .. 1"
                ) from None
        return value


class IbotHead(PrototypeHead):
    """DINO's head on class token and patches: one body, one last layer or two (spec 6.6)."""

    def __init__(self, dim: int, prototypes: int, patch_prototypes: int | None, *, masked: bool, **body: Any) -> None:
        """A head for the student (`masked`: of the patches only those masked) or for the teacher (all patches).

        Args:
            dim: width of the tokens.
            prototypes: K of the class token.
            patch_prototypes: K2 of a last layer for patches; None shares the class token's.
            masked: whether the head is the student's.
            body: see `PrototypeHead`.
        """
        super().__init__(dim, prototypes, **body)
        self.masked = masked
        self.last_layer2: WeightNormLinear | None = None
        if patch_prototypes is not None:
            bottleneck = self.last_layer.weight_v.shape[1]
            self.last_layer2 = WeightNormLinear(bottleneck, patch_prototypes, self.last_layer.weight_g.requires_grad)

    def project_patches(self, x: Tensor) -> Tensor:
        """(..., dim) tokens -> (..., patch prototypes) logits."""
        layer = self.last_layer if self.last_layer2 is None else self.last_layer2
        logits: Tensor = layer(self.bottleneck(x))
        return logits

    def forward(self, features: Features) -> Output:
        """{"cls": (N, K)} logits, and "patch" logits: the teacher's (N, T, K2), the student's (M, K2) of a masked view.

        M counts the masked patches of all images, image by image; "mask" (N, T) and "places" (M,) among the N * T tell
        which they are. Views that were not masked (the local ones) have no patch logits.
        """
        output = super().forward(features)
        if not self.masked:
            output["patch"] = self.project_patches(features.patches)
        elif features.mask is not None:
            places = features.masked_places()
            chosen = features.patches.flatten(0, 1).index_select(0, places)
            output |= {"patch": self.project_patches(chosen), "mask": features.mask, "places": places}
        return output


class Ibot(Dino):
    """DINO with the student's global views masked, plus cross-entropy with the teacher at the masked patches."""

    Options = IbotOptions
    wants_mask = True
    paper_teacher_temp = 0.07
    paper_norm_last_layer = False
    patch_center: Tensor

    def __init__(self, options: IbotOptions, dim: int) -> None:
        """Make both centres, c (1, K) and c2 (1, 1, K2).

        Raises:
            UserError: when an option is still "auto".
        """
        super().__init__(options, dim)
        self.patch_prototypes = int(options.patch_prototypes)
        ratio, var = options.mask_ratio, options.mask_ratio_var
        assert not isinstance(ratio, str)  # refused above, as every "auto"
        assert not isinstance(var, str)
        self.law = MaskLaw(options.mask_shape, ratio, var)
        self.register_buffer("patch_center", torch.zeros(1, 1, self.patch_prototypes))

    @classmethod
    def derive(cls, options: Mapping[str, Any], facts: Any) -> dict[str, tuple[Any, str]]:
        """As DINO; no more prototypes than the paper's 8192, as many for patches as for class tokens."""
        rules = super().derive(options, facts)
        if rules["prototypes"][0] > MOST_PROTOTYPES:
            rules["prototypes"] = MOST_PROTOTYPES, "the paper's"
        del rules["use_bn"]
        rules["patch_teacher_temp"] = rules["teacher_temp"]
        rules["warmup_patch_teacher_temp"] = rules["warmup_teacher_temp"]
        own, patches = options.get("prototypes", "auto"), options.get("patch_prototypes", "auto")
        if options.get("shared_head", True) and patches != "auto":
            rules["prototypes"] = patches, "as objective.patch_prototypes, which share the layer"
        count = rules["prototypes"][0] if own == "auto" else own
        rules["patch_prototypes"] = count, "as objective.prototypes"
        # On 4 x 4 patches the blocks still cover 13 % in the mean, where they cover 15 % of the paper's 14 x 14.
        rules["mask_ratio"] = PAPER_MASKS, "the paper's; on 5,000 images half of it or no masks learned no better"
        ratio = options.get("mask_ratio", "auto")
        ratios = PAPER_MASKS if ratio == "auto" else ratio
        rules["mask_ratio_var"] = [min(0.2, r, 1 - r) for r in ratios], "the paper's .2, within 0 and 1"
        rules["mask_start"] = 0.0, "from the first step on, as the paper's transformers (its Swin from epoch 50)"
        return rules

    def make_head(self) -> nn.Module:
        """Features -> logits of the class token and of the masked patches."""
        return self._head(masked=True)

    def make_target_head(self) -> nn.Module:
        """Features -> logits of the class token and of all patches."""
        return self._head(masked=False)

    def _head(self, masked: bool) -> IbotHead:
        o = self.options
        return IbotHead(
            self.dim,
            self.prototypes,
            None if o.shared_head else self.patch_prototypes,
            masked=masked,
            hidden=int(o.hidden),
            bottleneck=o.bottleneck,
            layers=o.layers,
            norm_last_layer=bool(o.norm_last_layer),
        )

    def mask_law(self, clock: Clock) -> MaskLaw:
        """The options' law, from epoch `mask_start` on; before it nothing is masked."""
        if clock.epoch < float(self.options.mask_start):
            return replace(self.law, ratio=(0.0,), var=(0.0,))
        return self.law

    def patch_teacher_temp(self, clock: Clock) -> float:
        """T_t2 of this step: the patches' own line, which starts with the masks (spec 6.3)."""
        o = self.options
        return warmed(
            o, clock, float(o.warmup_patch_teacher_temp), float(o.patch_teacher_temp), delay=float(o.mask_start)
        )

    def embed(
        self, online: Mapping[str, Output], target: Mapping[str, Output], clock: Clock, labels: Tensor | None = None
    ) -> Embeddings:
        """What DINO reads, and the same of the masked patches (M, K2) of every global view, in float32."""
        e = super().embed(online, target, clock, labels)
        if not any("mask" in output for output in online.values()):
            return e  # scored at another resolution, views have no masks: class tokens alone tell
        o, temperature = self.options, self.patch_teacher_temp(clock)
        students, teachers = {**e.online}, {**e.target}
        masked = {
            slot: output["patch"].detach().flatten(0, 1).index_select(0, online[slot]["places"]).float()
            for slot, output in target.items()
        }
        for slot, prob in assignments(o, masked, self.patch_center[0], temperature).items():
            log_prob = torch.log_softmax(online[slot]["patch"].float() / o.student_temp, dim=-1)
            students[slot] = {**students[slot], "patch_log_prob": log_prob, "mask": online[slot]["mask"]}
            teachers[slot] = {**teachers[slot], "patch_prob": prob}
        patches = [output["patch"].detach() for output in target.values()]
        sums = torch.stack([p.sum((0, 1), dtype=torch.float32) for p in patches]).sum(0)
        rows = float(sum(p.shape[0] * p.shape[1] for p in patches))
        return replace(
            e,
            online=students,
            target=teachers,
            settings={**e.settings, "patch_teacher_temp": temperature},
            stats={**e.stats, "patch_center_sum": sums[None, None], "patch_center_rows": sums.new_tensor(rows)},
        )

    def terms(self, slots: Sequence[str]) -> list[Term]:
        """DINO's pairs, times lambda1."""
        return [term._replace(weight=self.options.lambda1 * term.weight) for term in super().terms(slots)]

    def view_loss(self, e: Embeddings, view: str) -> Tensor | None:
        """(B,) cross-entropy at the masked patches, mean over those of the image, times lambda2 / 2 (spec 6.2).

        The halves are the mean over the paper's two global views. An image without a mask counts with 0.
        """
        if not is_global(view) or "mask" not in e.online[view]:
            return None
        loss: Tensor = 0.5 * self.options.lambda2 * self._patch_loss(e, view)
        return loss

    def _patch_loss(self, e: Embeddings, view: str) -> Tensor:
        mask = e.online[view]["mask"]
        losses = -(e.target[view]["patch_prob"] * e.online[view]["patch_log_prob"]).sum(-1)
        return losses.new_zeros(mask.shape).masked_scatter(mask, losses).sum(1) / mask.sum(1).clamp(min=1)

    @torch.no_grad()
    def after_step(
        self, student: nn.Module, teacher: nn.Module | None, clock: Clock, stats: Mapping[str, Tensor]
    ) -> None:
        """As DINO; the patches' centre from all raw patch rows of the teacher, masked or not (spec 6.3)."""
        super().after_step(student, teacher, clock, stats)
        mean = stats["patch_center_sum"] / stats["patch_center_rows"]
        self.patch_center.lerp_(mean, 1 - self.options.patch_center_momentum)

    def chance_loss(self, batch: int) -> float | None:
        """Both terms with uniform distributions; only images with a mask have the second one."""
        patches = self.law.share_masked * math.log(self.patch_prototypes)
        return float(self.options.lambda1 * math.log(self.prototypes) + self.options.lambda2 * patches)

    @torch.no_grad()
    def diagnose(self, e: Embeddings) -> dict[str, Tensor]:
        """DINO's readings of the class tokens and their like for patches, which can collapse alone (spec 6.8)."""
        found = super().diagnose(e)
        terms = super().terms(list(e.online))
        loss = torch.stack([t.weight * self.pair_loss(e, t.target, t.source).mean() for t in terms]).sum()
        mask = torch.stack([e.online[slot]["mask"] for slot in e.target])
        found |= {
            "kl": loss - found["teacher_entropy"],
            "entropy_share": found["teacher_entropy"] / math.log(self.prototypes),
            "loss_cls": loss,
            "loss_patch": torch.stack([self._patch_loss(e, slot).mean() for slot in e.target]).mean(),
            "masked_fraction": mask.float().mean(),
        }
        prob = torch.cat([output["patch_prob"] for output in e.target.values()])
        if not len(prob):
            return found
        log_prob = torch.cat([e.online[slot]["patch_log_prob"] for slot in e.target])
        used = prob.new_zeros(prob.shape[1]).scatter_(0, prob.argmax(-1), 1.0).sum()
        entropy = torch.special.entr(prob).sum(-1).mean()
        return found | {
            "patch_teacher_entropy": entropy,
            "patch_entropy_share": entropy / math.log(prob.shape[1]),
            "patch_student_entropy": -(log_prob.exp() * log_prob).sum(-1).mean(),
            "patch_kl": -(prob * log_prob).sum(-1).mean() - entropy,
            "patch_max_mean_prob": prob.mean(0).max(),
            "patch_distinct_argmax": used / min(prob.shape),
            "patch_teacher_temp": told(e, "patch_teacher_temp", prob),
        }
