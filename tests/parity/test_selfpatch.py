"""SelfPatch against its official code: neighbours and aggregator, loss, three steps (spec patch_and_pretext 1)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_helpers import Load, assert_close, tiny_vit
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.objectives.dino import Dino, DinoOptions
from belvedere.pretrain.method import Batch, Branch, Losses, Method, Targets, plan
from belvedere.pretrain.optim import build_optimizer, cancel_frozen, clip_per_tensor
from belvedere.schedules import Clock
from belvedere.tasks._token_losses import Distill
from belvedere.tasks.contract import Scene, Surroundings
from belvedere.tasks.selfpatch import SelfPatch, SelfPatchOptions, neighbour_similarity, torus_neighbours
from belvedere.views.sample import sample_views
from belvedere.views.slots import ViewSettings, build_slots
from belvedere.views.views import Views


def dino_options(**given: Any) -> DinoOptions:
    shape = {"hidden": 8, "bottleneck": 8, "use_bn": False, "norm_last_layer": True}
    return DinoOptions(
        **{
            **shape,
            "centering": "mean",
            "center_on": "all",
            "teacher_temp_by": "epoch",
            "momentum": 0.9,
            "freeze_last_layer": 0,
            **given,
        }
    )


def make_task(dim: int, heads: int, k: int, prototypes: int, dino: DinoOptions, **sizes: int) -> SelfPatch:
    patch = sizes.get("patch", 1)
    around = Surroundings(
        dim=dim,
        patch_dim=dim,
        patch=patch,
        channels=3,
        can=frozenset({"raw_patches"}),
        has_class_token=False,
        has_positions=True,
        grids={slot: (side // patch, side // patch) for slot, side in sizes.items() if slot != "patch"},
        sizes={slot: (side, side) for slot, side in sizes.items() if slot != "patch"},
        objective="dino",
        objective_options=dino,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    return SelfPatch(SelfPatchOptions(k=k, heads=heads, prototypes=prototypes), around)


def names_of_aggregator(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reference names to ours, without the final norm, which is the backbone's here."""
    renamed = {name.replace("cls_token", "query").replace("cls_blocks", "blocks"): x for name, x in state.items()}
    return {name: x for name, x in renamed.items() if not name.startswith("norm.")}


@pytest.mark.parametrize("side", [3, 4, 6, 8, 14])
def test_neighbours(golden: Load, side: int) -> None:
    assert torch.equal(torus_neighbours(side, side), golden("selfpatch_neighbors")[f"neighbor_index_{side}x{side}"])


def test_selection_and_aggregation(golden: Load) -> None:
    g = golden("selfpatch_neighbors")
    dim, k = g["tokens"].shape[-1], int(g["k"])
    dino = dino_options(prototypes=4, warmup_teacher_temp=0.04, teacher_temp=0.04, teacher_temp_warmup=0)
    task = make_task(dim, int(g["num_heads"]), k, 4, dino, global_a=6)
    state = g.state("param.")
    task.aggregator.load_state_dict(names_of_aggregator(state))
    norm = nn.LayerNorm(dim, eps=1e-6)
    norm.load_state_dict({"weight": state["norm.weight"], "bias": state["norm.bias"]})
    heads: dict[str, nn.Module] = {"aggregator": task.aggregator}

    def features() -> tuple[Tensor, Features]:
        tokens = g["tokens"].requires_grad_()
        return tokens, Features(tokens[:, 0], norm(tokens), (6, 6), tokens[:, :0], raw_patches=tokens, norm=norm)

    tokens, found = features()
    similarity, neighbours = neighbour_similarity(found)
    assert_close(similarity, g["neighbor_cosine"], 1e-5)
    picked = neighbours.expand_as(similarity).gather(2, similarity.topk(k).indices)
    assert torch.equal(picked.sort().values, g["topk_patch"].sort().values)

    teacher = torch.cat([task.pool(found, heads).unsqueeze(1), task.target_tokens(found, heads)], dim=1)
    assert_close(teacher, g["teacher_out"], 1e-5)
    (teacher * g["teacher_probe"]).sum().backward()
    assert_close(tokens.grad, g["teacher_grad_tokens"], 1e-4)
    gradients = {name: x.grad for name, x in task.aggregator.named_parameters()}
    gradients |= {"norm.weight": norm.weight.grad, "norm.bias": norm.bias.grad}
    expected = g.state("teacher_paramgrad.")
    for name, gradient in (names_of_aggregator(expected) | {"norm.weight": expected["norm.weight"]}).items():
        assert_close(gradients[name], gradient, 1e-4)

    tokens, found = features()
    student = torch.cat([task.pool(found, heads).unsqueeze(1), found.patches], dim=1)
    assert_close(student, g["student_out"], 1e-5)
    (student * g["student_probe"]).sum().backward()
    assert_close(tokens.grad, g["student_grad_tokens"], 1e-4)


def test_loss(golden: Load) -> None:
    g = golden("selfpatch_loss")
    warmup, batch = int(g["warmup_teacher_temp_epochs"]), int(g["batch"])
    options = dino_options(
        prototypes=int(g["out_dim"]),
        student_temp=float(g["student_temp"]),
        warmup_teacher_temp=float(g["warmup_teacher_temp"]),
        teacher_temp=float(g["teacher_temp"]),
        teacher_temp_warmup=warmup,
        center_momentum=float(g["center_momentum"]),
    )
    objective = Dino(options, dim=4)
    rule = Distill(options.model_copy(update={"prototypes": int(g["out_dim_patch"])}), dim=4)
    slots = ["global_a", "global_b", "local_1", "local_2"]
    assert len(slots) == int(g["ncrops"])
    for step in range(int(g["steps"])):
        s = g.state(f"s{step}.")
        clock = Clock(int(s["epoch"]), 1, int(g["nepochs"]))
        given = {
            f"{side}_{part}_{size}": s[f"{side}_{part}_{size}"].requires_grad_(side == "student")
            for side in ("student", "teacher")
            for part in ("cls", "patch")
            for size in ("global", "local")
        }

        def slotted(kind: str, given: dict[str, Tensor] = given) -> dict[str, Tensor]:
            rows = [*given[f"{kind}_global"].split(batch), *given[f"{kind}_local"].split(batch)]
            return dict(zip(slots, rows, strict=True))

        online = {slot: {"cls": rows[:, 0]} for slot, rows in slotted("student_cls").items()}
        target = {slot: {"cls": rows[:, 0]} for slot, rows in slotted("teacher_cls").items()}
        e = objective.embed(online, target, clock)
        image_loss = objective.per_image(e).mean()
        targets = rule.targets(slotted("teacher_patch"), clock)
        sources = rule.sources(slotted("student_patch"))
        patch_losses = [rule.per_token(sources[slot], targets[slot]).mean(1) for slot in slots]
        patch_loss = torch.stack(patch_losses).mean(0).mean()
        loss = image_loss + float(g["patch_loss_weight"]) * patch_loss
        loss.backward()
        for name, value in (("cls_loss", image_loss), ("patch_loss", patch_loss), ("loss", loss)):
            assert_close(value, s[name], 2e-5)
        for part in ("cls", "patch"):
            for size in ("global", "local"):
                assert_close(given[f"student_{part}_{size}"].grad, s[f"grad_{part}_{size}"], 2e-5)
        objective.after_step(nn.Identity(), nn.Identity(), clock, e.stats)
        rule.after_step(rule.stats())
        assert_close(objective.center, s["center_after"][0], 2e-5)
        assert_close(rule.dino.center, s["patch_center_after"], 2e-5)


class Given(Dino):
    """DINO whose teacher moves by the momenta of the file, which lie on no cosine."""

    momenta: Tensor

    def momentum(self, clock: Clock) -> float:
        return float(self.momenta[clock.step])


def loaded(branch: Branch, task: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the reference's one network into a branch and the task's heads."""
    backbone = {name.removeprefix("backbone."): x for name, x in state.items() if name.startswith("backbone.")}
    backbone |= {f"norm.{name}": state[f"ca_head.norm.{name}"] for name in ("weight", "bias")}
    branch.backbone.model.load_state_dict(backbone)
    for prefix, module in (("c_head.", branch.head), ("p_head.", task.projector)):
        module.load_state_dict({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})
    own = {name.removeprefix("ca_head."): x for name, x in state.items() if name.startswith("ca_head.")}
    task.aggregator.load_state_dict(names_of_aggregator(own))


def saved(branch: Branch, heads: nn.Module) -> dict[str, Tensor]:
    """The reverse of `loaded`: our parameters under the reference's names."""
    found = {f"backbone.{name}": x for name, x in branch.backbone.model.named_parameters()}
    found |= {f"ca_head.norm.{name}": found.pop(f"backbone.norm.{name}") for name in ("weight", "bias")}
    found |= {f"c_head.{name}": x for name, x in branch.head.named_parameters()}
    found |= {f"p_head.{name}": x for name, x in heads.projector.named_parameters()}
    aggregator = heads.aggregator.named_parameters()
    renamed = ((name.replace("query", "cls_token").replace("blocks", "cls_blocks"), x) for name, x in aggregator)
    return found | {f"ca_head.{name}": x for name, x in renamed}


def assert_same_parameters(branch: Branch, heads: nn.Module, expected: dict[str, Tensor]) -> None:
    own = saved(branch, heads)
    assert expected
    for name, x in expected.items():
        # The true gradient of a key's bias is 0, and Adam makes steps of its rounding noise.
        if name.endswith("attn.k.bias"):
            assert_close(own[name], x, 1e-2)
        elif name.endswith("qkv.bias"):
            parts = [torch.cat([t.chunk(3)[0], t.chunk(3)[2]]) for t in (own[name], x)]
            assert_close(parts[0], parts[1], 1e-5)
        else:
            assert_close(own[name], x, 1e-5)


def test_three_steps(golden: Load) -> None:
    """Plan, both branches, objective, task, clipping, frozen layers, AdamW, EMA and both centres, as the loop does."""
    g = golden("selfpatch_step")
    dim, steps, upsample = int(g["embed_dim"]), int(g["steps"]), int(g["upsample"])
    temperatures = g["teacher_temp_schedule"].tolist()
    options = dino_options(
        prototypes=int(g["out_dim"]),
        hidden=int(g["head_hidden"]),
        bottleneck=int(g["head_bottleneck"]),
        warmup_teacher_temp=temperatures[0],
        teacher_temp=temperatures[1],
        teacher_temp_warmup=2,
        freeze_last_layer=int(g["freeze_last_layer"]),
    )
    objective = Given(options, dim)
    objective.momenta = g["teacher_momentum"]
    side = [upsample * g[f"s0.view{i}_small"].shape[-1] for i in range(int(g["ncrops"]))]
    slots = ["global_a", "global_b", "local_1", "local_2"]
    patch = int(g["patch_size"])
    sizes = dict(zip(slots, side, strict=True)) | {"patch": patch}
    students: list[tuple[Branch, SelfPatch]] = []
    for _ in range(2):
        backbone = tiny_vit(
            size=int(g["img_size"]),
            patch=patch,
            width=dim,
            depth=int(g["depth"]),
            heads=int(g["num_heads"]),
            mlp_ratio=float(g["mlp_ratio_backbone"]),
            class_token=False,
        )
        task = make_task(dim, int(g["num_heads"]), int(g["k"]), int(g["out_dim_patch"]), options, **sizes)
        branch = Branch(backbone, objective.make_head())
        loaded(branch, task, g.state("init."))
        students.append((branch, task))
    (student, task), (teacher, averaged) = students
    teacher_heads = {"aggregator": averaged.aggregator, "projector": averaged.projector}
    for branch, heads in ((student, task), (teacher, averaged)):
        branch.pool = lambda features, heads=heads: task.pool(features, {"aggregator": heads.aggregator})
    teacher.requires_grad_(False)
    averaged.requires_grad_(False)
    assert task.pools
    method = Method(student, objective, {"selfpatch": task})
    optimizer = build_optimizer("adamw", method, lr=0.0, weight_decay=0.0, decay="matrices")
    online = nn.ModuleDict({"branch": student, "aggregator": task.aggregator, "projector": task.projector})
    followers = nn.ModuleDict({"branch": teacher, **teacher_heads})
    settings = ViewSettings(size=(side[0], side[0]), local_size=(side[2], side[2]), locals=2)
    params = sample_views(build_slots(settings, 3), [0, 1], [[96, 96]] * 2, 0, 0)
    assert list(params.slots) == slots

    for step in range(steps):
        pixels = [g[f"s{step}.view{i}_small"] for i in range(len(slots))]
        pixels = [x.repeat_interleave(upsample, -1).repeat_interleave(upsample, -2) for x in pixels]
        together = (torch.cat(pixels),) if side[0] == side[2] else (torch.cat(pixels[:2]), torch.cat(pixels[2:]))
        clock = Clock(step, 1, steps)
        scene = Scene(Views(params, together), None, clock, lambda n: torch.empty(n), lambda: torch.empty(0))
        for group in optimizer.param_groups:
            group["lr"] = float(g["lr"][step])
            group["weight_decay"] = float(g["weight_decay"][step]) if group["decayed"] else 0.0
        asked = plan(scene, objective, {"selfpatch": task})
        with torch.no_grad():
            features = teacher.encode(asked.target)
            own = {name[1]: found for name, found in features.items() if name[0] == "objective"}
            targets = Targets(teacher.project(own), features, {})
        losses: Losses = method(Batch(scene, asked, targets, {"selfpatch": teacher_heads}))
        loss = losses.local_sum() / len(params.index)
        optimizer.zero_grad()
        loss.backward()
        cancel_frozen(student, objective.frozen(clock))
        cancel_frozen(task, task.frozen(clock))
        clip_per_tensor(method.parameters(), float(g["clip_grad"]))
        optimizer.step()
        objective.after_step(online, followers, clock, losses.embeddings.stats)
        task.after_step(clock, task.stats())

        patch_loss = losses.tasks["selfpatch.patches"].mean() / task.options.weight
        for name, value in (("cls_loss", losses.per_image.mean()), ("patch_loss", patch_loss), ("loss", loss)):
            assert_close(value, g[f"s{step}.{name}"], 1e-5)

    assert_same_parameters(student, task, g.state("final_student."))
    assert_same_parameters(teacher, averaged, g.state("final_teacher."))
    assert_close(objective.center, g["final_center"][0], 1e-5)
    assert isinstance(task.rule, Distill)
    assert_close(task.rule.dino.center, g["final_patch_center"], 1e-5)
