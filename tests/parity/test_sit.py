"""SiT's three released versions against the official code: losses, weights, heads, corruption (spec 4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_helpers import Load, assert_close
from torch import Tensor

from belvedere.backbones.contract import Features
from belvedere.objectives._heads import SiTHead
from belvedere.objectives.contract import Objective
from belvedere.objectives.mocov3 import MoCoV3, MoCoV3Options
from belvedere.objectives.simclr import SimClr, SimClrOptions
from belvedere.pretrain.weighting import Weighting
from belvedere.schedules import Clock
from belvedere.tasks._corruption import Stream, aligned, corrupt_groups, cover, group_masks
from belvedere.tasks.reconstruct import ReconstructionHead, masked_l1

SLOTS = ("global_a", "global_b")


def halves(x: Tensor) -> dict[str, Tensor]:
    return dict(zip(SLOTS, x.chunk(2), strict=True))


def contrastive(objective: Objective, online: Tensor, target: Tensor | None = None) -> Tensor:
    own = {slot: {"cls": rows} for slot, rows in halves(online).items()}
    others = {} if target is None else {slot: {"cls": rows} for slot, rows in halves(target).items()}
    return objective.per_image(objective.embed(own, others, Clock(0, 1, 1)))


def test_third_version(golden: Load) -> None:
    g = golden("sit_loss")
    options = MoCoV3Options(temperature=float(g["v3.temperature"]), hidden=1, layers=1, momentum=0.996, head="sit")
    student, painted = (g[f"v3.{name}"].requires_grad_() for name in ("student_cls", "reconstruction"))
    first = contrastive(MoCoV3(options, dim=1), student, g["v3.teacher_cls"])
    clean, mask = halves(g["v3.clean"]), halves(g["v3.mask"][:, :1].bool())
    second = masked_l1(halves(painted), clean, mask)
    assert_close(first.mean(), g["v3.contrastive"], 2e-5)
    assert_close(second.mean(), g["v3.rec_loss"], 2e-5)
    total = (first + float(g["v3.lambda"]) * second).mean()
    total.backward()
    assert_close(total, g["v3.total"], 2e-5)
    assert_close(student.grad, g["v3.grad_student_cls"], 2e-5)
    assert_close(painted.grad, g["v3.grad_reconstruction"], 2e-5)


def weighted(rule: str, s: Tensor, losses: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Total of the losses of rotation, contrast, reconstruction, and its gradient by their s."""
    weighting = Weighting(rule, ["rotation", "reconstruct"])
    with torch.no_grad():
        for name, value in zip(("rotation", "objective", "reconstruct"), s, strict=True):
            weighting.s[name].fill_(value)
    turn, contrast, rebuilt = losses
    total = weighting(contrast, {"rotation.turn": turn, "reconstruct.pixels": rebuilt}).mean()
    total.backward()
    return total, torch.stack([weighting.s[name].grad for name in ("rotation", "objective", "reconstruct")])


def simclr(temperature: Tensor) -> SimClr:
    return SimClr(SimClrOptions(temperature=float(temperature), hidden=1, layers=1, head="sit"), dim=1)


def test_second_version(golden: Load) -> None:
    g = golden("sit_loss")
    features, logits = (g[f"v2.{name}"].requires_grad_() for name in ("features", "rot_logits"))
    contrast = contrastive(simclr(g["v2.temperature"]), features)
    turn = F.cross_entropy(logits, g["v2.rot_labels"], reduction="none").view(2, -1).mean(0)
    clean, mask = halves(g["v3.clean"]), halves(g["v3.mask"][:, :1].bool())
    rebuilt = masked_l1(halves(g["v2.reconstruction"]), clean, mask)
    for found, name in ((turn, "loss_rot"), (contrast, "loss_contr"), (rebuilt, "loss_rec")):
        assert_close(found.mean(), g[f"v2.{name}"], 2e-5)
    total, grad = weighted("square", g["v2.s"], [turn, contrast, rebuilt])
    assert_close(total, g["v2.total"], 2e-5)
    assert_close(grad, g["v2.grad_s"], 2e-5)
    assert_close(features.grad, g["v2.grad_features"], 2e-5)
    assert_close(logits.grad, g["v2.grad_rot_logits"], 2e-5)


def test_first_version(golden: Load) -> None:
    g = golden("sit_loss")
    first, second = (g[f"v1.emb{i}"].requires_grad_() for i in (1, 2))
    contrast = contrastive(simclr(g["v1.temperature"]), torch.cat([first, second]))
    turn = F.cross_entropy(g["v1.rot_logits"], g["v1.rot_labels"], reduction="none").view(2, -1).mean(0)
    clean = halves(g["v3.clean"])
    everywhere = {slot: torch.ones_like(x[:, :1], dtype=torch.bool) for slot, x in clean.items()}
    rebuilt = masked_l1(halves(g["v1.reconstruction"]), clean, everywhere)
    for found, name in ((turn, "loss_rot"), (contrast, "loss_contr"), (rebuilt, "loss_rec")):
        assert_close(found.mean(), g[f"v1.{name}"], 2e-5)
    total, grad = weighted("exp", g["v1.s"], [turn, contrast, 0.5 * rebuilt])
    assert_close(total, g["v1.total"][0], 2e-5)
    assert_close(grad, g["v1.grad_s"], 2e-5)
    assert_close(first.grad, g["v1.grad_emb1"], 2e-5)


def test_projection_head(golden: Load) -> None:
    g = golden("sit_heads")
    state = g.state("cls.")
    hidden, dim = state["mlp.0.weight"].shape
    head = SiTHead(dim, hidden, len(state["mlp.6.weight"]), layers=3)
    after = {name: tensor for name, tensor in state.items() if "running" in name or "tracked" in name}
    fresh = {name: tensor for name, tensor in head.state_dict().items() if name in after}
    head.load_state_dict({**state, **fresh})

    def project(x: Tensor) -> Tensor:
        tokens = x.unsqueeze(1)
        return head(Features(cls=x, patches=tokens, grid=(1, 1), prefix=tokens))["cls"]

    assert_close(project(g["cls_in"]), g["cls_out_train"], 1e-5)
    assert_close(project(0.5 * g["cls_in"]), g["cls_out_train_second_call_half_input"], 1e-5)
    for name, tensor in after.items():
        assert_close(head.state_dict()[name], tensor, 1e-5)
    head.eval()
    assert_close(project(g["cls_in"]), g["cls_out_eval_after_two"], 1e-5)


def test_reconstruction_head(golden: Load) -> None:
    g = golden("sit_heads")
    tokens, patch = g["tokens"], int(g["patch_size"])
    channels, side = g["rec_out"].shape[1:3]
    head = ReconstructionHead(tokens.shape[2], channels, patch, layers=3)
    head.load_state_dict(g.state("rec."))
    grid = (side // patch, side // patch)
    features = Features(cls=tokens[:, 0], patches=tokens, grid=grid, prefix=tokens[:, :0])
    assert_close(head(features, (side, side)), g["rec_out"], 1e-5)


def test_blocks_of_one_recorded_draw(golden: Load) -> None:
    """The raw integers of the reference's draw give its mask with its number of blocks, and its corrupted image."""
    g = golden("sit_corruption")
    size, align = tuple(g["trace.mask"].shape), int(g["trace.align"])
    raw = g["trace.raw_draws_row_col_h_w"].tolist()
    blocks = (aligned(top, left, height, width, size, align) for top, left, height, width in raw)
    mask, used = cover(blocks, float(g["trace.target_fraction"]), size)
    assert len(used) == len(raw)
    assert torch.equal(torch.from_numpy(mask), g["trace.mask"].bool())
    corrupted = torch.where(torch.from_numpy(mask), g["trace.donor"], g["trace.image"])
    assert torch.equal(corrupted, g["trace.corrupted"])


@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_how_much_is_masked(golden: Load, case: str) -> None:
    g = golden("sit_corruption")
    side, align, most = int(g[f"{case}.size"]), int(g[f"{case}.align"]), float(g[f"{case}.max_replace"])
    stream = Stream(3, 0, np.arange(300), "parity")
    masks, blocks = group_masks(stream, "drop", most, (side, side), align)
    fraction, expected = masks.mean((1, 2)), g[f"{case}.mask_fraction"].numpy()
    error = np.sqrt(fraction.var() / len(fraction) + expected.var() / len(expected))
    assert abs(fraction.mean() - expected.mean()) < 3 * error
    assert fraction.min() >= min(0.5, most)
    slack = 3 * expected.std()
    assert fraction.max() < expected.max() + slack
    assert np.mean([len(used) for used in blocks]) == pytest.approx(
        g[f"{case}.n_blocks"].float().mean().item(), rel=0.1
    )
    heights = [block.height for used in blocks for block in used]
    low, high = g[f"{case}.block_draw_min_max"].tolist()
    assert (min(heights), max(heights)) == (low, round(high / align) * align)


def test_share_of_views_that_are_replaced(golden: Load) -> None:
    g = golden("sit_corruption")
    number = int(g["replace.n"])
    views = torch.arange(1.0, number + 1).view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous()
    corrupted, mask = corrupt_groups(Stream(0, 0, np.arange(number), "parity"), views, 0.5, 0.3, ("zeros",), 1)
    dropped = ((corrupted == 0) & mask).flatten(1).any(1)
    assert abs(dropped.float().mean() - g["replace.share_kept_first_stage"]) < 3 * np.sqrt(2 * 0.25 / number)
    fraction = mask.float().mean((1, 2, 3))
    assert fraction[dropped].min() >= 0.5
    assert fraction[~dropped].min() >= 0.3
    assert fraction[~dropped].max() < 0.5
