"""The vision transformer, its positions and the multi-crop forward against DINO's (spec objectives 1.1, 1.2, 1.7)."""

from __future__ import annotations

import torch
from core_helpers import Load, assert_close, gap, tiny_vit, to_branch
from torch import Tensor

from belvedere.backbones.pos_embed import resample_positions
from belvedere.objectives._heads import PrototypeHead
from belvedere.pretrain.method import Branch, Job


def test_forward_at_every_size(golden: Load) -> None:
    g = golden("vit_dino")
    h = g.hparams
    vit = tiny_vit(
        size=h["img_size"][0],
        patch=h["patch_size"],
        width=h["embed_dim"],
        depth=h["depth"],
        heads=h["num_heads"],
        mlp_ratio=h["mlp_ratio"],
    )
    vit.model.load_state_dict(g.state("state."))
    entered: list[Tensor] = []
    left: dict[int, Tensor] = {}
    vit.model.blocks[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    for i, block in enumerate(vit.model.blocks):
        block.register_forward_hook(lambda module, args, out, i=i: left.update({i: out}))
    for case, (height, width, _) in h["sizes_hw_batch"].items():
        entered.clear()
        features = vit(g[f"{case}.x"], need=("attention", "stages", "raw_patches"))
        assert features.grid == (height // vit.patch, width // vit.patch)
        assert_close(features.cls, g[f"{case}.cls"], 2e-5)
        tokens = torch.cat([features.prefix, features.patches], dim=1)
        before, last = g[f"{case}.tokens_last2"]
        assert_close(tokens, last, 2e-5)
        assert_close(vit.model.norm(left[h["depth"] - 2]), before, 2e-5)
        stage = features.stages[-2].flatten(2).transpose(1, 2)
        assert_close(vit.model.norm(stage), before[:, 1:], 2e-5)
        assert_close(vit.model.norm(features.raw_patches), last[:, 1:], 2e-5)
        table = vit.model.pos_embed
        grid = vit.model.patch_embed.grid_size
        positions = torch.cat([table[:, :1], resample_positions(table[:, 1:], grid, features.grid, "dino")], dim=1)
        assert_close(positions, g[f"{case}.pos_embed"], 2e-5)
        if f"{case}.attn_last" in g:
            assert_close(features.attention, g[f"{case}.attn_last"], 2e-5)
        if f"{case}.tokens_in" in g:
            assert_close(entered[0], g[f"{case}.tokens_in"], 2e-5)


def test_resampled_positions(golden: Load) -> None:
    g = golden("pos_embed_interp")
    table = g["pos_embed"][:, 1:]
    patch, old = g.hparams["patch_size"], (g.hparams["grid"], g.hparams["grid"])
    for height, width in g.hparams["sizes_hw"]:
        found = resample_positions(table, old, (height // patch, width // patch), "dino")
        assert_close(found, g[f"pe_{height}x{width}"][:, 1:], 1e-5)


def test_positions_are_resampled_by_scale_and_not_by_size(golden: Load) -> None:
    g = golden("pos_embed_interp")
    (name,) = [name for name in g.names if name.startswith("contrast_sizebased_")]
    height, width = (int(side) for side in name.split("_")[2].split("x"))
    patch, old = g.hparams["patch_size"], (g.hparams["grid"], g.hparams["grid"])
    table = g["pos_embed"][:, 1:]
    assert gap(resample_positions(table, old, (height // patch, width // patch), "dino"), g[name]) > 0.1
    assert gap(resample_positions(table, old, (height // patch, width // patch), "timm"), g[name]) > 0.1


def test_multicrop(golden: Load) -> None:
    g = golden("multicrop_wrapper")
    h = g.hparams
    backbone = tiny_vit(
        size=h["img"],
        patch=h["patch"],
        width=h["embed_dim"],
        depth=h["depth"],
        heads=h["heads"],
        mlp_ratio=h["mlp_ratio"],
    )
    sizes = h["head"]
    head = PrototypeHead(
        h["embed_dim"], sizes["out"], hidden=sizes["hidden"], bottleneck=sizes["bottleneck"], layers=sizes["nlayers"]
    )
    branch = Branch(backbone, head)
    branch.load_state_dict(to_branch(g.state("state.")))
    calls: list[list[int]] = []
    backbone.register_forward_pre_hook(lambda module, args: calls.append(list(args[0].shape)))
    jobs = {(f"crop_{i}",): Job(g[f"crop_{i}"]) for i in range(h["n_global"] + h["n_local"])}
    features = branch.encode(jobs)
    outputs = branch.project({name[0]: features[name] for name in jobs})
    assert_close(torch.cat([output["cls"] for output in outputs.values()]), g["y"], 2e-5)
    assert calls == g["backbone_call_shapes"].tolist()
