"""MoCo v3 against the official code: loss in one and two processes, heads, network, two steps (spec objectives 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import Load, assert_close, tiny_vit, without_key_bias
from test_dino_step import project
from torch import Tensor, nn

from belvedere.backbones.build import build_backbone
from belvedere.objectives._heads import MoCoHead
from belvedere.objectives.contract import Embeddings
from belvedere.objectives.mocov3 import MoCoV3, MoCoV3Options
from belvedere.pretrain.method import Branch
from belvedere.pretrain.optim import build_optimizer
from belvedere.schedules import Clock
from processes import run_processes

CLOCK = Clock(0, 1, 1)
SLOTS = ("global_a", "global_b")


def make(**options: Any) -> MoCoV3:
    return MoCoV3(MoCoV3Options(**{"hidden": 1, "layers": 3, "momentum": 0.99, **options}), dim=1)


def embed(arrays: dict[str, Tensor], temperature: float, suffix: str = "") -> tuple[MoCoV3, Embeddings]:
    objective = make(temperature=temperature)
    q, k = ({slot: {"cls": arrays[f"{x}{i}{suffix}"]} for i, slot in enumerate(SLOTS, start=1)} for x in "qk")
    return objective, objective.embed(q, k, CLOCK)


def test_loss(golden: Load) -> None:
    g = golden("moco_v3_loss")
    for case, sizes in g.hparams["cases"].items():
        arrays = {name: tensor.requires_grad_() for name, tensor in g.state(f"{case}.").items() if name[0] in "qk"}
        objective, e = embed(arrays, sizes["T"])
        loss = objective.per_image(e).mean()
        loss.backward()
        assert_close(objective.pair_loss(e, "global_b", "global_a").mean(), g[f"{case}.loss_q1k2"], 2e-5)
        assert_close(objective.pair_loss(e, "global_a", "global_b").mean(), g[f"{case}.loss_q2k1"], 2e-5)
        assert_close(loss, g[f"{case}.loss"], 2e-5)
        assert_close(arrays["q1"].grad, g[f"{case}.grad_q1"], 2e-5)
        assert_close(arrays["q2"].grad, g[f"{case}.grad_q2"], 2e-5)
        assert arrays["k1"].grad is None


def two_ranks(rank: int, arrays: dict[str, Tensor], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    q1, q2 = (arrays[f"q{i}_r{rank}"].requires_grad_() for i in (1, 2))
    objective, e = embed(arrays, temperature, f"_r{rank}")
    loss = objective.per_image(e).mean()
    loss.backward()
    return loss.detach(), q1.grad, q2.grad


def test_loss_in_two_processes(golden: Load, tmp_path: Path) -> None:
    g = golden("moco_v3_loss_ws2")
    arrays = {name: g[name] for name in g.names}
    for rank, (loss, grad1, grad2) in enumerate(
        run_processes(g.hparams["world_size"], tmp_path, two_ranks, arrays, g.hparams["T"])
    ):
        assert_close(loss, g[f"loss_r{rank}"], 2e-5)
        assert_close(grad1, g[f"grad_q1_r{rank}"], 2e-5)
        assert_close(grad2, g[f"grad_q2_r{rank}"], 2e-5)


def heads(h: dict[str, Any]) -> dict[str, nn.Module]:
    sizes = {"dim": h["in_dim"], "hidden": h["mlp_dim"], "out": h["out_dim"]}
    vit, resnet = MoCoHead(**sizes, layers=3, predictor="norm"), MoCoHead(**sizes, layers=2, predictor="bare")
    return {
        "projector_vit": vit.projector,
        "predictor_vit": vit.predictor,
        "projector_resnet": resnet.projector,
        "predictor_resnet": resnet.predictor,
    }


def test_heads(golden: Load) -> None:
    g = golden("moco_v3_heads")
    for name, head in heads(g.hparams).items():
        head.load_state_dict(g.state(f"{name}.state."))
        x = g[f"{name}.x"].requires_grad_()
        y = head(x)
        (y * g[f"{name}.upstream"]).sum().backward()
        assert_close(y, g[f"{name}.y"], 2e-5)
        assert_close(x.grad, g[f"{name}.grad_x"], 1e-4)
        after = head.state_dict()
        for key, tensor in g.state(f"{name}.state_after.").items():
            assert_close(after[key], tensor, 2e-5)


def build(h: dict[str, Any], freeze_patch: bool = True) -> Any:
    """The network as a run builds it, with the initialisation and the frozen projection of the paper."""
    return build_backbone(
        "vit_tiny",
        size=(h["img_size"], h["img_size"]),
        channels=3,
        patch=h["patch_size"],
        width=h["embed_dim"],
        depth=h["depth"],
        heads=h["num_heads"],
        init="mocov3",
        freeze_patch=freeze_patch,
    )


def test_network(golden: Load) -> None:
    g = golden("moco_v3_vit")
    h = g.hparams
    vit = build(h)
    own = dict(vit.model.named_parameters())
    assert own.keys() == {name for name in g.arrays["all_params"].tolist() if not name.startswith("head.")}
    trained = {name for name in g.arrays["trainable"].tolist() if not name.startswith("head.")}
    assert {name for name, p in own.items() if p.requires_grad} == trained
    assert_close(own["pos_embed"], g["pos_embed_init"], 1e-5)
    vit.model.load_state_dict(g.state("state."))
    assert_close(vit.model.patch_embed(g["x"]).flatten(1, 2), g["patch_embed"], 2e-5)
    assert_close(vit(g["x"]).cls, g["cls_feature"], 2e-5)


def to_branch(state: dict[str, Tensor], encoder: str) -> dict[str, Tensor]:
    """Parameters of one of the reference's encoders, and of its predictor, under a branch's names."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(f"{encoder}.head."):
            renamed[name.replace(f"{encoder}.head.", "head.projector.")] = tensor
        elif name.startswith(f"{encoder}."):
            renamed[name.replace(f"{encoder}.", "backbone.model.")] = tensor
        elif name.startswith("predictor.") and encoder == "base_encoder":
            renamed[f"head.{name}"] = tensor
    return renamed


def make_branch(h: dict[str, Any], head: nn.Module, state: dict[str, Tensor]) -> Branch:
    backbone = tiny_vit(
        size=h["img_size"],
        patch=h["patch_size"],
        width=h["embed_dim"],
        depth=h["depth"],
        heads=h["num_heads"],
        mlp_ratio=h["mlp_ratio"],
    )
    branch = Branch(backbone, head)
    missing, unexpected = branch.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    # The golden's MLPs are narrower than those that a run builds, which says what is frozen.
    trained = {name: p.requires_grad for name, p in build(h, h["stop_grad_conv1"]).model.named_parameters()}
    for name, p in backbone.model.named_parameters():
        p.requires_grad_(trained[name])
    return branch


def test_two_steps(golden: Load) -> None:
    g = golden("moco_v3_step")
    h = g.hparams
    options = MoCoV3Options(
        temperature=h["T"], hidden=h["mlp_dim"], out=h["dim"], layers=3, momentum=float(g["momentum"][0])
    )
    objective = MoCoV3(options, dim=h["embed_dim"])
    init = g.state("init.")
    student = make_branch(h, objective.make_head(), to_branch(init, "base_encoder"))
    teacher = make_branch(h, objective.make_target_head(), to_branch(init, "momentum_encoder")).requires_grad_(False)
    optimizer = build_optimizer("adamw", student, lr=0.0, weight_decay=h["weight_decay"], decay="all")

    for step in range(h["steps"]):
        # The momenta of the file, which says how far along a run they are, but not how long that run is.
        objective.options = options.model_copy(update={"momentum": float(g["momentum"][step])})
        clock = Clock(0, 1, h["steps"])
        for group in optimizer.param_groups:
            group["lr"] = float(g["lr"][step])
        online = project(student, {slot: g[f"x{i}_{step}"] for i, slot in enumerate(SLOTS, start=1)})
        objective.before_target(student, teacher, clock)
        with torch.no_grad():
            target = project(teacher, {slot: g[f"x{i}_{step}"] for i, slot in enumerate(SLOTS, start=1)})
        loss = objective.per_image(objective.embed(online, target, clock)).mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            check_gradients(g, student)
        optimizer.step()
        assert_close(loss, g["loss"][step], 1e-5)

    final = g.state("final.")
    for branch, encoder in ((student, "base_encoder"), (teacher, "momentum_encoder")):
        own = branch.state_dict()
        expected = to_branch(final, encoder)
        assert expected
        if branch is student:
            # The final norm's bias goes into a BatchNorm, so its true gradient is 0 and AdamW steps on rounding noise;
            # this running mean is where such steps show.
            del expected["head.projector.1.running_mean"]
        for name, tensor in expected.items():
            assert_close(without_key_bias(name, own[name]), without_key_bias(name, tensor), 3e-4)


def check_gradients(g: Any, student: Branch) -> None:
    own = {name: p.grad for name, p in student.named_parameters()}
    norms = to_branch(dict(zip(g.arrays["grad0_names"].tolist(), g["grad0_l2"].tolist(), strict=True)), "base_encoder")
    assert own.keys() == norms.keys()
    for name, norm in norms.items():
        if norm < 0:
            assert own[name] is None
        else:
            assert own[name].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-4)
