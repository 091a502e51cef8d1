"""SelfPatch's aggregator: a trained query that reads a set of patch tokens by class attention (spec 1.1).

Class attention is CaiT's ("Going deeper with Image Transformers", Touvron et al., ICCV 2021, arXiv:2103.17239); there
is no LayerScale here.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.layers import Mlp
from timm.models.cait import ClassAttn
from torch import Tensor, nn

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class ClassAttentionBlock(nn.Module):
    """q <- q + attention(q; [q, tokens]), then q <- q + MLP(q), each after a LayerNorm; the tokens stay."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = ClassAttn(dim, num_heads=heads, qkv_bias=True)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """(N, 1, D) queries and (N, n, D) tokens -> (N, 1, D) queries."""
        query = query + self.attn(self.norm1(torch.cat([query, tokens], dim=1)))
        moved: Tensor = query + self.mlp(self.norm2(query))
        return moved


class Aggregator(nn.Module):
    """One query and two blocks of class attention: a set of tokens becomes one vector, whatever their number and order.

    The LayerNorm that the paper's head ends in is the backbone's own final norm, so that it is exported with it.
    """

    def __init__(self, dim: int, heads: int, depth: int = 2) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.blocks = nn.ModuleList(ClassAttentionBlock(dim, heads) for _ in range(depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, n, D) un-normed tokens -> (N, D), before the backbone's final norm."""
        query = self.query.expand(len(tokens), -1, -1)
        for block in self.blocks:
            query = block(query, tokens)
        return query.squeeze(1)
