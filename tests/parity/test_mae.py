"""MAE's masking and loss against the golden `mae_masking_loss` (spec patch_and_pretext 9)."""

from __future__ import annotations

import torch
from core_helpers import Load

from belvedere.tasks.mae import draw_masks, masked_error, patchify, standardised, unpatchify


def test_masks_are_drawn_from_the_noise(golden: Load) -> None:
    g = golden("mae_masking_loss")
    keep, restore = draw_masks(g["noise"], float(g["mask_ratio"]))
    visible = g["tokens"].gather(1, keep.unsqueeze(-1).expand(-1, -1, g["tokens"].shape[2]))
    assert torch.equal(visible, g["visible"])
    assert torch.equal((restore >= keep.shape[1]).float(), g["mask"])
    assert torch.equal(restore, g["ids_restore"])


def test_patches_and_back(golden: Load) -> None:
    g = golden("mae_masking_loss")
    patch = int(g["patch_size"])
    patches = patchify(g["image"], patch)
    assert torch.equal(patches, g["patchified"])
    side = g["image"].shape[2] // patch
    assert torch.equal(unpatchify(patches, (side, side), patch), g["image"])


def test_the_loss_and_its_gradient(golden: Load) -> None:
    g = golden("mae_masking_loss")
    missing = g["mask"].bool()
    for name, wanted in (("norm", standardised(g["patchified"])), ("raw", g["patchified"])):
        painted = g["pred"].requires_grad_()
        loss = masked_error(painted, wanted, missing).mean()
        torch.testing.assert_close(loss, g[f"loss_{name}"], atol=1e-5, rtol=0)
        (gradient,) = torch.autograd.grad(loss, painted)
        torch.testing.assert_close(gradient, g[f"grad_{name}"], atol=1e-5, rtol=0)
