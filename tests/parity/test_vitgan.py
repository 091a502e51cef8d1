"""ViTGAN's parts against its published code and its formulas (spec patch_and_pretext 7)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_helpers import Load, assert_close
from torch import Tensor, nn

from belvedere.generate.attention import REFERENCE, Attention, AttentionForm, Form, Sign
from belvedere.generate.generator import Block
from belvedere.generate.layers import EqualLinear, SelfModulatedNorm, overlapping_patches
from belvedere.generate.losses import discriminator_loss, generator_loss
from belvedere.generate.spectral import spectral


def attention_of(g: Any, form: AttentionForm) -> Attention:
    """The golden's layer; tied projections are its queries' and values'."""
    layer = Attention(int(g["dim"]), int(g["heads"]), form, EqualLinear)
    query, key, value = g["qkv_weight"].chunk(3)
    layer.project.weight.data = torch.cat([query, value] if form.tied else [query, key, value])
    layer.out.load_state_dict({"weight": g["out_weight"], "bias": g["out_bias"]})
    return layer


@pytest.mark.parametrize(("form", "name"), [("published", "ref_l2"), ("dot", "ref_dot")])
def test_attention_is_the_published_one(golden: Load, form: Form, name: str) -> None:
    g = golden("vitgan_l2_attention")
    layer = attention_of(g, REFERENCE if form == "published" else AttentionForm(form=form, tied=False, values="tokens"))
    x = g["x"].requires_grad_()
    out = layer(x)
    assert_close(out, g[f"{name}_out"], 1e-5)
    on_x, on_qkv = torch.autograd.grad((out * g["probe"]).sum(), [x, layer.project.weight])
    assert_close(on_x, g[f"{name}_grad_x"], 1e-4)
    assert_close(on_qkv, g[f"{name}_grad_qkv"], 1e-4)


@pytest.mark.parametrize("sign", ["minus", "plus"])
@pytest.mark.parametrize("power", [1, 2])
def test_tied_attention_is_the_formulas(golden: Load, sign: Sign, power: int) -> None:
    g = golden("vitgan_l2_attention")
    layer = attention_of(g, AttentionForm(sign=sign, power=power, values="tokens"))
    assert_close(layer.heads_out(g["x"]), g[f"tied_{sign}_dist{power}_heads_out"], 1e-5)


def normalised(g: Any, step: str, *, published: bool) -> nn.Linear:
    """The golden's layer of one step, with its sigma at the start."""
    layer = spectral(EqualLinear(int(g["in_dim"]), int(g["out_dim"])), published=published)
    weight = layer.parametrizations.weight
    weight.original.data = g[f"{step}.weight_bar"]
    weight[0].sigma_init.copy_(g["sigma_init"])
    weight[0].u.copy_(g["u_fixed"])
    layer.bias.data = g["bias"]
    return layer


@pytest.mark.parametrize("step", ["s0", "s1", "s2"])
def test_spectral_norm_is_the_published_one(golden: Load, step: str) -> None:
    g = golden("vitgan_isn")
    layer = normalised(g, step, published=True)
    assert_close(layer.weight, g[f"{step}.effective_weight"], 1e-5)
    out = layer(g["x"])
    assert_close(out, g[f"{step}.out"], 1e-5)
    raw = layer.parametrizations.weight.original
    (gradient,) = torch.autograd.grad((out * g[f"{step}.probe"]).sum(), raw)
    assert_close(gradient, g[f"{step}.grad_weight_bar"], 1e-4)


@pytest.mark.parametrize("step", ["s0", "s1", "s2"])
def test_spectral_norm_comes_to_the_formulas(golden: Load, step: str) -> None:
    g = golden("vitgan_isn")
    layer = normalised(g, step, published=False)
    for _ in range(30):
        weight = layer.weight
    assert_close(weight, g[f"{step}.effective_weight_exact"].float(), 1e-4)


def test_self_modulated_norm_is_the_published_one(golden: Load) -> None:
    g = golden("vitgan_sln_block")
    layer = SelfModulatedNorm(int(g["dim"]), int(g["dim"]))
    layer.load_state_dict({name.replace("mlp_", ""): x for name, x in g.state("sln.").items()})
    assert layer.norm.eps == float(g["eps"])
    h, w = g["h"].requires_grad_(), g["w"].requires_grad_()
    out = layer(h, w)
    assert_close(out, g["sln_out"], 1e-5)
    on_h, on_w = torch.autograd.grad((out * g["probe"]).sum(), [h, w])
    assert_close(on_h, g["sln_grad_h"], 1e-4)
    assert_close(on_w, g["sln_grad_w"], 1e-4)


NAMES = {
    "layernorm1.mlp_": "norm1.",
    "layernorm2.mlp_": "norm2.",
    "attn.to_qkv": "attention.project",
    "attn.to_out.0": "attention.out",
    "attn.": "attention.",
    "ff.net.0": "mlp.0",
    "ff.net.3": "mlp.2",
}


def renamed(name: str) -> str:
    theirs = next(prefix for prefix in NAMES if name.startswith(prefix))
    return name.replace(theirs, NAMES[theirs], 1)


def test_the_generators_block_is_the_published_one(golden: Load) -> None:
    g = golden("vitgan_sln_block")
    state = {renamed(name): x for name, x in g.state("block.").items()}
    block = Block(int(g["dim"]), int(g["heads"]), len(state["mlp.0.weight"]), REFERENCE, EqualLinear)
    block.load_state_dict(state)
    assert_close(block(g["h"], g["w"]), g["block_out"], 1e-5)


def test_overlapping_patches_are_the_definition(golden: Load) -> None:
    g = golden("vitgan_overlap_patches")
    patches = overlapping_patches(g["image"], int(g["patch"]), int(g["overlap"]))
    assert torch.equal(patches, g["patches"])


def first_call(x: Tensor) -> Tensor:
    return 0.9 * x.flip(3) + 0.02


def second_call(x: Tensor) -> Tensor:
    return 1.1 * x.roll(1, 2) - 0.05


def untouched(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("mode", "first", "second"), [("aug_both", first_call, second_call), ("std", untouched, first_call)]
)
def test_losses_are_the_published_ones(golden: Load, mode: str, first: Any, second: Any) -> None:
    """Penalties in `aug_both` include R1 by the image before it was augmented; `std` was stored without it."""
    g = golden("vitgan_losses")

    def discriminator(x: Tensor) -> Tensor:
        rows = x.flatten(1)
        return rows @ g["d_w"] + (rows @ g["d_u"]).square()

    loss = discriminator_loss(
        discriminator,
        g["real"],
        g["fake"],
        first,
        second,
        r1=float(g["lbd_r1"]),
        consistency_real=float(g["lbd_bcr_real"]),
        consistency_fake=float(g["lbd_bcr_fake"]),
    )
    assert_close(loss.adversarial, g[f"nonsat.{mode}_d_loss"], 1e-5)
    assert_close(generator_loss(discriminator(first(g["fake"]))), g[f"nonsat.{mode}_g_loss"], 1e-5)
    if mode == "aug_both":
        assert_close(loss.r1, g["nonsat.aug_both_penalty_r1_only"][0], 1e-5)
        assert_close(loss.r1 + loss.consistency, g["nonsat.aug_both_penalty_r1_plus_bcr"], 1e-5)
    else:
        assert_close(loss.consistency, g["nonsat.std_penalty_bcr"], 1e-5)
    assert_close(loss.total.detach(), loss.adversarial + loss.r1 + loss.consistency, 1e-6)
