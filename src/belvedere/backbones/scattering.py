"""ScatSimCLR's encoder: a fixed scattering transform, and a small residual network that reads its coefficients.

"ScatSimCLR: self-supervised contrastive learning with pretext task regularization for small-scale datasets", Kinakh et
al., ICCV workshops 2021 (spec patch_and_pretext 5.1). Wavelets of L angles and J scales are nothing to learn, so that
few images suffice for the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from belvedere.backbones.contract import Backbone, Features
from belvedere.errors import UserError
from belvedere.scatnet import BLOCKS, ScatNetName

POOLED = 4
"""Cells a side of the pooled map."""
# Width of the first convolution: the small network's is narrower.
FIRST, FIRST_OF_8 = 256, 32


def _front_end(name: ScatNetName) -> Callable[..., Any]:
    """kymatio's 2-D torch transform, from its own module: the package's torch entry imports a broken 3-D part.

    Raises:
        UserError: when kymatio is not installed.
    """
    try:
        from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D
    except ImportError as error:
        raise UserError(f'backbone.name {name}: needs an extra: pip install "belvedere[scatter]"') from error
    transform: Callable[..., Any] = ScatteringTorch2D
    return transform


@lru_cache(maxsize=16)
def _transform(name: ScatNetName, height: int, width: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """(..., H, W) -> (..., K, H/2^J, W/2^J) on a device; filters depend on the size and are no part of a state."""
    made = _front_end(name)(J=name.scales, shape=(height, width), L=name.angles, max_order=2)
    moved: Callable[[Tensor], Tensor] = made.to(device)
    return moved


def _scatter(name: ScatNetName, pixels: Tensor) -> Tensor:
    transform = _transform(name, pixels.shape[2], pixels.shape[3], pixels.device)
    # Fourier transforms have no half precision, and kymatio wants its input contiguous.
    with torch.autocast(pixels.device.type, enabled=False):
        return transform(pixels.float().contiguous())


# torch.compile does not know complex numbers; it compiles what stands before and after.
_compiler: Any = torch.compiler
_scatter_as_it_is: Callable[[ScatNetName, Tensor], Tensor] = _compiler.disable(_scatter)


class Scattering(nn.Module):
    """Scattering coefficients of order 0 to 2 of every colour; nothing in it is trained."""

    def __init__(self, name: ScatNetName, channels: int) -> None:
        """Of images of `channels` channels.

        Raises:
            UserError: when kymatio is not installed.
        """
        super().__init__()
        _front_end(name)
        self.name = name
        self.out_channels = channels * name.coefficients
        # Without scale and shift, which the first convolution has anyway: the stem stays without parameters.
        # Variances of order 2 are about as small as BatchNorm's usual eps.
        self.norm = nn.BatchNorm2d(self.out_channels, eps=1e-9, affine=False) if name.normalise else nn.Identity()

    def coefficients(self, pixels: Tensor) -> Tensor:
        """(N, C, K, H/2^J, W/2^J) float32 coefficients of (N, C, H, W) pixels: order 0, order 1 by scale then angle,
        order 2 by (scale, angle) of the first wavelet and then of the second.

        Raises:
            UserError: when 2^J does not divide H and W.
        """
        height, width = pixels.shape[2:]
        if height % self.name.stride or width % self.name.stride:
            raise UserError(f"backbone {self.name} reads sizes divisible by {self.name.stride}, not {height} x {width}")
        return _scatter_as_it_is(self.name, pixels)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C K, H/2^J, W/2^J), all coefficients of a colour before those of the next."""
        normed: Tensor = self.norm(self.coefficients(pixels).flatten(1, 2))
        return normed


class ScatterAdapter(nn.Module):
    """What is trained: a convolution, then residual blocks that keep the map's size."""

    def __init__(self, name: ScatNetName, channels: int, drop_path: float) -> None:
        """`drop_path` is the last block's rate of stochastic depth; it grows from 0 at the first."""
        super().__init__()
        width = FIRST_OF_8 if name.blocks <= 8 else FIRST
        self.scattering = Scattering(name, channels)
        self.first = nn.Sequential(
            nn.Conv2d(self.scattering.out_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        widths = [out for out, count in BLOCKS[name.blocks] for _ in range(count)]
        self.blocks = nn.ModuleList()
        for place, out in enumerate(widths):
            rate = drop_path * place / max(1, len(widths) - 1)
            self.blocks.append(_block(width, out, rate))
            width = out
        self.width = width

    def forward(self, pixels: Tensor) -> Iterator[Tensor]:
        """Maps (N, D, H/2^J, W/2^J) after the first convolution and after each block, one after the other."""
        x: Tensor = self.first(self.scattering(pixels))
        yield x
        for block in self.blocks:
            x = block(x)
            yield x

    def group_matcher(self, coarse: bool = False) -> Mapping[str, str]:
        """Which layer a parameter belongs to, as timm's models say it."""
        return {"stem": r"^first", "blocks": r"^blocks\.(\d+)"}


def _block(fan_in: int, fan_out: int, drop_path: float) -> BasicBlock:
    """conv-BN-ReLU-conv-BN + identity, or + 1x1 conv-BN where the width changes; ReLU."""
    skip = None
    if fan_in != fan_out:
        skip = nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, bias=False), nn.BatchNorm2d(fan_out))
    return BasicBlock(fan_in, fan_out, downsample=skip, drop_path=DropPath(drop_path) if drop_path else None)


class ScatNet(Backbone):
    """The contract over scattering and adapter: `cls` is the whole pooled map h, `patches` its 4 x 4 cells."""

    can = frozenset({"stages"})
    has_class_token = False
    in_timm = False

    def __init__(self, name: ScatNetName, *, channels: int, size: tuple[int, int], drop_path: float = 0.0) -> None:
        """A freshly drawn network; `size` (h, w) is what it is trained at.

        Raises:
            UserError: when kymatio is not installed, or 2^J does not divide the size.
        """
        super().__init__()
        if size[0] % name.stride or size[1] % name.stride:
            raise UserError(f"image size {size[0]} x {size[1]}: the stride {name.stride} of {name} does not divide it")
        adapter = ScatterAdapter(name, channels, drop_path)
        self.model = adapter
        self.name = name
        self.architecture = str(name)
        self.model_args = {"in_chans": channels}
        self.dim = adapter.width * POOLED**2
        self.patch = name.stride
        self.channels = channels
        self.size = size

    def coefficients(self, pixels: Tensor) -> Tensor:
        """(N, C, K, H/2^J, W/2^J) scattering coefficients of (N, C, H, W) pixels; see `Scattering.coefficients`."""
        stem = self.model.get_submodule("scattering")
        assert isinstance(stem, Scattering)
        return stem.coefficients(pixels)

    @property
    def patch_dim(self) -> int:
        """Width of a cell; the global vector is all cells one after the other."""
        return self.dim // POOLED**2

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """4 x 4 at any size."""
        return POOLED, POOLED

    def forward(
        self,
        pixels: Tensor,
        *,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        pos_embed: bool = True,
        extra_tokens: Tensor | None = None,
        need: Sequence[str] = (),
    ) -> Features:
        """Encode (N, C, H, W) pixels of any size that 2^J divides; see `Backbone.forward`.

        `stages` are the maps after the first convolution and after each block.

        Raises:
            UserError: for what only a transformer can do, a wrong number of channels, or a size that 2^J does not
                divide.
        """
        self.refuse(
            mask=mask is not None,
            keep=keep is not None,
            pos_embed=not pos_embed,
            extra_tokens=extra_tokens is not None,
            **dict.fromkeys(need, True),
        )
        if pixels.shape[1] != self.channels:
            raise UserError(
                f"backbone {self.architecture} reads {self.channels} channels, the images have {pixels.shape[1]}"
            )
        # Only the last map outlives the next one unless all are wanted.
        maps = deque(self.model(pixels), maxlen=None if "stages" in need else 1)
        pooled = F.adaptive_avg_pool2d(maps[-1], POOLED)
        return Features(
            cls=pooled.flatten(1),
            patches=pooled.flatten(2).transpose(1, 2),
            grid=(POOLED, POOLED),
            prefix=pooled.new_zeros((pooled.shape[0], 0, pooled.shape[1])),
            stages=list(maps) if "stages" in need else None,
        )
