"""The linear probe's features against the golden `linear_probe_features` (DINO's published probe)."""

from __future__ import annotations

import torch
from core_helpers import Load

from belvedere.backbones.contract import Features
from belvedere.measure.readings import read


def test_readings_are_dinos(golden: Load) -> None:
    g = golden("linear_probe_features")
    blocks = [g[f"block_tokens_{i}"] for i in range(4)]
    last = blocks[-1]
    features = Features(
        cls=last[:, 0],
        patches=last[:, 1:],
        grid=(1, last.shape[1] - 1),
        prefix=last[:, :1],
        blocks=[tokens[:, 0] for tokens in blocks],
    )
    assert torch.equal(read(features, "last4"), g["dino.n4_avg0"])
    assert torch.equal(read(features, "cls"), g["dino.n1_avg0"])
    # DINO's reshape sets class token and mean side by side channel by channel: the same columns, in another order.
    interleaved = g["dino.n1_avg1"]
    plain = torch.cat([interleaved[:, 0::2], interleaved[:, 1::2]], 1)
    torch.testing.assert_close(read(features, "cls+avg"), plain, atol=1e-6, rtol=0)
