"""ScatSimCLR against its published code: coefficients, counts, a forward, the loss, the jigsaw (spec section 5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_helpers import Load, assert_close
from torch import Tensor, nn

from belvedere.backbones.build import build_backbone
from belvedere.backbones.contract import Features
from belvedere.backbones.scattering import ScatNet
from belvedere.objectives._heads import PlainHead
from belvedere.objectives.simclr import SimClr, SimClrOptions
from belvedere.scatnet import ScatNetName
from belvedere.schedules import Clock
from belvedere.tasks._permutations import far_permutations
from belvedere.tasks.jigsaw import tile_boxes


def network(name: ScatNetName, size: int) -> ScatNet:
    backbone = build_backbone(str(name), size=(size, size), channels=3, seed=0)
    assert isinstance(backbone, ScatNet)
    return backbone


def projector(dim: int, hidden: int, out: int) -> nn.Module:
    """What the recipe's objective makes."""
    options = SimClrOptions(temperature=0.5, hidden=hidden, out=out, layers=2, head="scatsimclr")
    head = SimClr(options, dim).make_head()
    assert isinstance(head, PlainHead)
    return head


def trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_coefficients_and_their_order(golden: Load) -> None:
    g = golden("scatnet_features")
    name = ScatNetName(8, angles=int(g["L"]), scales=int(g["J"]))
    found = network(name, g["image"].shape[-1]).coefficients(g["image"])
    assert found.shape == g["coeffs"].shape
    assert (found - g["coeffs"]).abs().max() <= 1e-4 * g["coeffs"].abs().max()
    assert name.coefficients == len(g["order"])


def test_counts_of_all_published_shapes(golden: Load) -> None:
    g = golden("scatsimclr_model")
    columns = g.arrays["param_table_columns"].tolist()
    projection = trained(projector(2048, 2048, 128))
    with torch.device("meta"):
        for numbers in g["param_table"].tolist():
            row = dict(zip(columns, numbers, strict=True))
            name = ScatNetName(row["res_blocks"], angles=row["L"], scales=row["J"])
            backbone = network(name, row["image_size"])
            assert 3 * name.coefficients == row["scattering_channels"]
            assert trained(backbone) == row["params_adapter"]
            assert projection == row["params_projection"]
            # What their code trains beside them is a BatchNorm that nothing reads.
            assert row["params_total"] - row["params_unused_bn"] == row["params_adapter"] + projection


@pytest.mark.parametrize(("blocks", "millions"), [(8, 6.11), (12, 9.28), (16, 10.46), (30, 15.50), (45, 16.59)])
def test_counts_of_the_papers_table(blocks: int, millions: float) -> None:
    with torch.device("meta"):
        found = trained(network(ScatNetName(blocks), 32)) + trained(projector(2048, 2048, 128))
    assert found / 1e6 == pytest.approx(millions, abs=0.006)


def fill(tensors: list[tuple[str, Tensor]], first: int) -> None:
    """The closed form of the golden's weights; `first` is the number of the first tensor."""
    for i, (name, tensor) in enumerate(tensors, start=first):
        j = torch.arange(tensor.numel(), dtype=torch.float64)
        wave = torch.sin(0.7 * j + 1.3 * i)
        if tensor.ndim == 1:
            values = 0.1 * wave + float(name.endswith("weight"))
        else:
            values = 0.5 / np.sqrt(tensor[0].numel()) * wave
        tensor.data.copy_(values.reshape(tensor.shape))


def test_forward_in_both_modes(golden: Load) -> None:
    g = golden("scatsimclr_model")
    name = ScatNetName(int(g["fwd_res_blocks"]), angles=int(g["fwd_L"]), scales=int(g["fwd_J"]))
    backbone = network(name, g["fwd_image"].shape[-1])
    head = projector(backbone.dim, backbone.dim, int(g["fwd_out_dim"]))
    tensors = [*backbone.named_parameters(), *head.named_parameters()]
    # The first two of theirs are of a BatchNorm that is never called.
    shapes = [f"({', '.join(map(str, p.shape))}{',' if p.ndim == 1 else ''})" for _, p in tensors]
    assert shapes == g.arrays["fwd_param_shapes"].tolist()[2:]
    fill(tensors, first=2)
    for module in (backbone.train(), head):
        module.requires_grad_(False)
    for mode, part in ((True, "train"), (False, "eval_after")):
        features = backbone.train(mode)(g["fwd_image"])
        assert_close(features.cls, g[f"fwd_h_{part}"], 1e-3)
        assert_close(head(features)["cls"], g[f"fwd_z_{part}"], 1e-3)
    assert torch.equal(features.patches.transpose(1, 2).flatten(1), features.cls)


def test_the_contrastive_loss_is_the_objective_simclr(golden: Load) -> None:
    g = golden("scatsimclr_loss")
    zi, zj = g["zi"].requires_grad_(), g["zj"].requires_grad_()
    logits = g["rotation_logits"].requires_grad_()
    objective = SimClr(SimClrOptions(temperature=float(g["temperature"]), hidden=1, layers=1), dim=1)
    e = objective.embed({"global_a": {"cls": zi}, "global_b": {"cls": zj}}, {}, Clock(0, 1, 1))
    contrastive = objective.per_image(e).mean()
    assert_close(contrastive, g["contrastive"], 2e-5)
    pretext = F.cross_entropy(logits, g["rotation_labels"])
    total = contrastive + float(g["pretext_lambda"]) * pretext
    total.backward()
    assert_close(pretext, g["pretext"], 2e-5)
    assert_close(total, g["total"], 2e-5)
    for found, part in ((zi, "zi"), (zj, "zj"), (logits, "logits")):
        assert_close(found.grad, g[f"grad_{part}"], 2e-5)


def test_tiles_and_permutations_of_the_jigsaw(golden: Load) -> None:
    g = golden("jigsaw_permutations")
    for side in (32, 96):
        assert tile_boxes(side, side) == [tuple(box) for box in g[f"tile_boxes_{side}"].tolist()]
    expected = g["greedy_expected"].numpy()
    found = far_permutations(len(expected), g["greedy_start"].tolist())
    assert np.array_equal(found, expected)


def test_the_head_reads_features_alone() -> None:
    """No norm: an image's projection does not depend on those beside it."""
    head = projector(8, 6, 4).train()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    features = Features(x, x.unsqueeze(1), (1, 1), x.new_zeros(5, 0, 8))
    alone = Features(x[:1], x[:1].unsqueeze(1), (1, 1), x.new_zeros(1, 0, 8))
    torch.testing.assert_close(head(features)["cls"][:1], head(alone)["cls"])
