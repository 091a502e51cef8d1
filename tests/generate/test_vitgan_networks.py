"""What the layers of ViTGAN are for: bounded attention, kept spectral norms, gradients of gradients (spec 7, 10.7)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from belvedere.generate.attention import REFERENCE, Attention, AttentionForm
from belvedere.generate.discriminator import Discriminator
from belvedere.generate.generator import Generator
from belvedere.generate.layers import overlapping_patches, places
from belvedere.generate.losses import discriminator_loss, generator_loss
from belvedere.generate.spectral import settle

DOT = AttentionForm(form="dot", tied=False, values="tokens")
FORMS = [AttentionForm(), AttentionForm(power=1, sign="plus", values="tokens"), DOT, REFERENCE]


def generator(form: AttentionForm = FORMS[0]) -> Generator:
    torch.manual_seed(0)
    return Generator(size=16, channels=3, dim=12, depth=1, heads=3, painter=16, form=form, grid=4)


def discriminator(form: AttentionForm = FORMS[0]) -> Discriminator:
    torch.manual_seed(1)
    return Discriminator(size=16, channels=3, dim=12, depth=1, heads=3, form=form, patch=4, overlap=2)


def largest_jacobian(form: AttentionForm, scale: float, heads: int = 1) -> float:
    """The largest norm of the Jacobian over random inputs of 8 tokens, width 6 a head.

    Of a third of them one token is 0: there all scores of products are equal however large the others are, which is
    the published proof that they have no bound. Of another third tokens differ by what the first head does not see.
    """
    torch.manual_seed(0)
    width = 6 * heads
    layer = Attention(width, heads, form, nn.Linear).double()
    nn.init.zeros_(layer.project.bias)
    found = 0.0
    for trial in range(12):
        x = torch.randn(1, 8, width, dtype=torch.float64)
        if trial % 3 == 1:
            x[:, 0] = 0
        if trial % 3 == 2:
            unseen = torch.linalg.svd(layer.project.weight[:6].detach())[2][6:]
            x = x @ unseen.mT @ unseen + 0.1 / scale * torch.randn_like(x)
        jacobian = torch.autograd.functional.jacobian(layer, scale * x)
        assert isinstance(jacobian, Tensor)
        found = max(found, torch.linalg.matrix_norm(jacobian.reshape(8 * width, 8 * width), 2).item())
    return found


@pytest.mark.parametrize("heads", [1, 4])
def test_default_attention_is_lipschitz_and_dot_products_are_not(heads: int) -> None:
    default = AttentionForm()
    assert largest_jacobian(default, 1000, heads) <= 2 * largest_jacobian(default, 1, heads)
    assert largest_jacobian(DOT, 1000, heads) > 1000 * largest_jacobian(DOT, 1, heads)


def test_values_of_the_tokens_have_no_bound_where_a_head_is_blind() -> None:
    """Why the default is not ViTGAN's formula: with one head it is bounded, with four it is not."""
    formula = AttentionForm(values="tokens")
    assert largest_jacobian(formula, 1000) <= 2 * largest_jacobian(formula, 1)
    assert largest_jacobian(formula, 1000, heads=4) > 20 * largest_jacobian(formula, 1, heads=4)


def norms(network: nn.Module) -> Tensor:
    """Exact spectral norm over the one at the start, of every normalised layer."""
    found = []
    for module in network.modules():
        if hasattr(module, "parametrizations"):
            kept = module.parametrizations.weight[0].sigma_init
            found.append(torch.linalg.matrix_norm(module.weight.detach(), 2) / kept)
    return torch.stack(found)


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def trained(steps: int, form: AttentionForm = FORMS[0]) -> tuple[Generator, Discriminator]:
    """Both networks after some steps against each other at a large rate."""
    g, d = generator(form), discriminator(form)
    optimisers = [torch.optim.Adam(net.parameters(), lr=2e-2, betas=(0.0, 0.99)) for net in (g, d)]
    source = torch.Generator().manual_seed(2)
    for _ in range(steps):
        real, z = torch.rand(4, 3, 16, 16, generator=source), torch.randn(4, 12, generator=source)
        loss = discriminator_loss(
            d, real, g(z), lambda x: x.flip(3), lambda x: x.flip(2), r1=0.1, consistency_real=1, consistency_fake=1
        )
        step(optimisers[1], loss.total)
        step(optimisers[0], generator_loss(d(g(z))))
    return g, d


def test_spectral_norms_stay_what_they_were_and_are_saved(tmp_path: Path) -> None:
    """Also after a checkpoint, whose network was drawn anew, and in a network of other weights that was never run."""
    torch.manual_seed(0)
    for network, fresh in zip(trained(50), (generator(), discriminator()), strict=True):
        raw = [module.original for name, module in network.named_modules() if name.endswith("parametrizations.weight")]
        moved = [torch.linalg.matrix_norm(weight.detach(), 2) for weight in raw]
        assert (torch.stack(moved) / kept(network) - 1).abs().max() > 0.02, "no norm moved: the test would see nothing"
        assert (norms(network) - 1).abs().max() < 0.02
        torch.save(network.state_dict(), tmp_path / "state.pt")
        for parameter in fresh.parameters():
            parameter.data.normal_()
        fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(kept(fresh), kept(network))
        assert (norms(fresh.eval()) - 1).abs().max() < 0.02
        other = copy.deepcopy(fresh)
        for parameter in other.parameters():
            parameter.data.normal_()
        assert (norms(other) - 1).abs().max() > 0.02
        settle(other)
        assert (norms(other) - 1).abs().max() < 0.02


def kept(network: nn.Module) -> Tensor:
    return torch.stack([buffer for name, buffer in network.named_buffers() if name.endswith("sigma_init")])


def test_the_published_estimate_is_not_the_norm() -> None:
    g, _ = trained(0, REFERENCE)
    assert (norms(g) - 1).abs().max() > 0.1


def test_a_forward_in_evaluation_changes_nothing() -> None:
    d = discriminator().eval()
    before = copy.deepcopy(d.state_dict())
    d(torch.rand(2, 3, 16, 16))
    assert all(torch.equal(x, before[name]) for name, x in d.state_dict().items())


@pytest.mark.parametrize("form", FORMS, ids=["minus2", "plus1", "dot", "reference"])
def test_the_penalty_reaches_every_layer(form: AttentionForm) -> None:
    """R1 is a gradient of a gradient: its own gradient is checked against finite differences in float64."""
    d = discriminator(form).double().eval()
    real = torch.rand(3, 3, 16, 16, dtype=torch.float64)

    def penalty() -> Tensor:
        loss = discriminator_loss(
            d, real, real, lambda x: x.flip(3), lambda x: x, r1=1.0, consistency_real=0, consistency_fake=0
        )
        return loss.total - torch.nn.functional.softplus(-d(real.flip(3))).mean() - softplus_of(d, real)

    weights = [p for name, p in d.named_parameters() if "blocks" in name and p.ndim == 2] + [d.embed.weight]
    analytic = torch.autograd.grad(penalty(), weights)
    with torch.no_grad():
        directions = [torch.randn_like(weight) for weight in weights]
        slopes = []
        for sign in (1, -1):
            for weight, direction in zip(weights, directions, strict=True):
                weight += sign * 1e-5 * direction
            with torch.enable_grad():
                slopes.append(penalty().item())
            for weight, direction in zip(weights, directions, strict=True):
                weight -= sign * 1e-5 * direction
    slope = sum((a * direction).sum().item() for a, direction in zip(analytic, directions, strict=True))
    assert slope == pytest.approx((slopes[0] - slopes[1]) / 2e-5, rel=1e-4)
    assert all(gradient.abs().max() > 0 for gradient in analytic)


def softplus_of(d: Discriminator, fake: Tensor) -> Tensor:
    return torch.nn.functional.softplus(d(fake.flip(3))).mean()


def test_a_token_paints_its_own_patch() -> None:
    """Changing one token changes one square of the picture and no other pixel."""
    g = generator().eval()
    z = torch.randn(1, 12)
    before = g(z)
    hook = g.norm.register_forward_hook(lambda _m, _i, out: torch.cat([out[:, :5], out[:, 5:6] + 1, out[:, 6:]], 1))
    changed = ((g(z) - before).abs() > 0).any(1)[0]
    hook.remove()
    rows, columns = changed.nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 7, 4, 7)


def test_patches_keep_their_count_and_reach_over() -> None:
    images = torch.zeros(1, 1, 8, 8)
    images[0, 0, 3, 3] = 1
    patches = overlapping_patches(images, 4, 2)
    assert patches.shape == (1, 4, 64)
    assert patches.sum() == 4, "the pixel at the meeting of four patches is in all of them"


def test_places_go_row_by_row() -> None:
    assert places(2).tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Generator(size=18, channels=3, dim=12, depth=1, heads=3, painter=8, form=FORMS[0], grid=4),
        lambda: Generator(size=16, channels=3, dim=12, depth=1, heads=5, painter=8, form=FORMS[0], grid=4),
        lambda: Discriminator(size=18, channels=3, dim=12, depth=1, heads=3, form=FORMS[0], patch=4, overlap=2),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="divide"):
        make()
