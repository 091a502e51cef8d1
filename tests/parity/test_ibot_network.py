"""iBOT's head and its masked transformer against the official code (spec objectives 6.5, 6.6)."""

from __future__ import annotations

from typing import Any

import torch
from core_helpers import Load, assert_close, tiny_vit
from torch import Tensor

from belvedere.backbones.contract import Features
from belvedere.objectives.ibot import IbotHead


def make_head(config: dict[str, Any], masked: bool) -> IbotHead:
    return IbotHead(
        config["in_dim"],
        config["out_dim"],
        None if config["shared_head"] else config["patch_out_dim"],
        masked=masked,
        hidden=config["hidden_dim"],
        bottleneck=config["bottleneck_dim"],
        layers=config["nlayers"],
        norm_last_layer=config["norm_last_layer"],
    )


def test_head(golden: Load) -> None:
    g = golden("ibot_head")
    for case, config in g.hparams["configs"].items():
        state = g.state(f"{case}.state.")
        if config["shared_head"]:
            state = {name: tensor for name, tensor in state.items() if not name.startswith("last_layer2")}
        head = make_head(config, masked=False)
        head.load_state_dict(state)
        x = g[f"{case}.x"].requires_grad_()
        patches = x[:, 1:]
        tokens = Features(cls=x[:, 0], patches=patches, grid=(1, patches.shape[1]), prefix=x[:, :1])
        y = head(tokens)
        ((y["cls"] * g[f"{case}.up_cls"]).sum() + (y["patch"] * g[f"{case}.up_patch"]).sum()).backward()
        assert_close(y["cls"], g[f"{case}.y_cls"], 2e-5)
        assert_close(y["patch"], g[f"{case}.y_patch"], 2e-5)
        assert_close(x.grad, g[f"{case}.grad_x"], 1e-4)
        gradients = {name: p.grad for name, p in head.named_parameters() if p.requires_grad}
        expected = g.state(f"{case}.grad.")
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert_close(gradient, expected[name], 1e-4)
        assert_close(head.project(g[f"{case}.x2d"]), g[f"{case}.y2d"], 2e-5)

        student = make_head(config, masked=True)
        student.load_state_dict(state)
        mask = torch.arange(y["patch"].shape[:2].numel()).reshape(y["patch"].shape[:2]) % 3 == 0
        masked = Features(tokens.cls, tokens.patches, tokens.grid, tokens.prefix, mask=mask)
        assert_close(student(masked)["patch"], g[f"{case}.y_patch"][mask], 2e-5)
        assert student(tokens).keys() == {"cls"}


def test_masked_transformer(golden: Load) -> None:
    g = golden("ibot_vit")
    h = g.hparams
    vit = tiny_vit(
        size=h["img_size"][0],
        patch=h["patch_size"],
        width=h["embed_dim"],
        depth=h["depth"],
        heads=h["num_heads"],
        mlp_ratio=h["mlp_ratio"],
        mask_token=True,
    )
    state = g.state("state.")
    token = state.pop("masked_embed")
    assert token.any()
    vit.model.load_state_dict(state)
    assert vit.mask_token is not None
    vit.mask_token.data.copy_(token)
    entered: list[Tensor] = []
    vit.model.blocks[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    for x, mask, expected in (
        (g["x"], g["mask"], g["tokens_masked"]),
        (g["x"], None, g["tokens_unmasked"]),
        (g["x_rect"], g["mask_rect"], g["tokens_rect_masked"]),
    ):
        features = vit(x, mask=mask)
        assert_close(torch.cat([features.prefix, features.patches], dim=1), expected, 2e-5)
        if mask is None:
            assert features.mask is None
        else:
            assert torch.equal(features.mask, mask.flatten(1))
    assert_close(entered[0], g["tokens_in_masked"], 2e-5)
