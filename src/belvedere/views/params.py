"""ViewParams: the record of every view of a batch. Pixels are made from it, never the other way round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from belvedere.views.slots import Interpolation, Size

# Names of the [V, N] tensors, in the order of the dataclass: what `gather`, `take` and `to` carry along.
FIELDS = (
    "top",
    "left",
    "h",
    "w",
    "flip",
    "jitter",
    "order",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "gray",
    "sigma",
    "solarize",
    "key",
)


@dataclass(frozen=True, eq=False)
class ViewParams:
    """Struct of tensors: V slots by N images (specs/view_engine.md 1.1).

    `top, left, h, w` is the crop box in canvas pixels (integers when drawn, floats when learned). `order` is 0..23, the
    lexicographic rank of a permutation of (brightness, contrast, saturation, hue), ignored unless `jitter`. Factors are
    1 and hue (in turns) 0 when off; `sigma` is in output pixels, 0 = off; `solarize` is a threshold in [0, 1], above 1
    = off. `flip` comes after the crop. `key` names the view's own stream of random numbers (see `draws.substreams`):
    what is drawn beside its pixels, such as its patch mask, follows a view that is chosen among candidates. `extras`
    are a policy's own `[V, N, ...]` tensors.

    Together with `seed` and `epoch`, a slot's name and an image's `index` reproduce every draw.
    """

    slots: tuple[str, ...]
    size: tuple[Size, ...]
    interpolation: tuple[Interpolation, ...]
    seed: int
    epoch: int
    index: Tensor
    src_h: Tensor
    src_w: Tensor
    top: Tensor
    left: Tensor
    h: Tensor
    w: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor
    sigma: Tensor
    solarize: Tensor
    key: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse records whose parts do not fit together.

        Raises:
            ValueError: a repeated slot name, or a tensor that is not `[V, N]`.
        """
        if len(set(self.slots)) != len(self.slots):
            raise ValueError(f"slot names must differ: {', '.join(self.slots)}")
        if not len(self.slots) == len(self.size) == len(self.interpolation):
            raise ValueError("slots, size and interpolation must have one entry a slot")
        shape = (len(self.slots), len(self.index))
        for name, tensor in [*self._per_view(), *self.extras.items()]:
            if tuple(tensor.shape[:2]) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape} (slots, images)")

    def _per_view(self) -> list[tuple[str, Tensor]]:
        return [(name, getattr(self, name)) for name in FIELDS]

    def _map(self, function: Callable[[Tensor], Tensor], **changes: Any) -> ViewParams:
        """A copy with `function` applied to every [V, N, ...] tensor, and other fields set as given."""
        mapped: dict[str, Any] = {name: function(tensor) for name, tensor in self._per_view()}
        extras = {name: function(tensor) for name, tensor in self.extras.items()}
        return replace(self, **mapped, extras=extras, **changes)

    @property
    def device(self) -> torch.device:
        """Where the record lies."""
        return self.top.device

    @property
    def requires_grad(self) -> bool:
        """Whether any parameter is being learned; then views are rendered differentiably."""
        return any(tensor.requires_grad for _, tensor in [*self._per_view(), *self.extras.items()])

    # --- choosing -----------------------------------------------------------------------------------------------------

    def slot(self, name: str | int) -> int:
        """Position of a slot on the V axis; integers pass through.

        Raises:
            KeyError: no slot of that name.
        """
        if isinstance(name, int):
            return name
        if name not in self.slots:
            raise KeyError(f"no slot {name!r}; there are {', '.join(self.slots)}")
        return self.slots.index(name)

    def select(self, names: Iterable[str]) -> ViewParams:
        """The record of these slots only, in this order."""
        rows = [self.slot(name) for name in names]
        return self._map(
            lambda tensor: tensor[rows],
            slots=tuple(self.slots[row] for row in rows),
            size=tuple(self.size[row] for row in rows),
            interpolation=tuple(self.interpolation[row] for row in rows),
        )

    def gather(self, choice: Tensor, slots: Sequence[str]) -> ViewParams:
        """One candidate per output slot and image: entry [v, n] of the result is candidate `choice[v, n]` of image n.

        Args:
            choice: `[V_out, N]` integers in 0..V-1, where the record lies.
            slots: the V_out names of the result.

        Raises:
            ValueError: candidates of different size or interpolation compete for one slot, or the shape is wrong.
        """
        if tuple(choice.shape) != (len(slots), len(self.index)):
            raise ValueError(f"choice must be {(len(slots), len(self.index))}, got {tuple(choice.shape)}")
        shapes = []
        for name, row in zip(slots, choice.tolist(), strict=True):
            kinds = {(self.size[v], self.interpolation[v]) for v in set(row)}
            if len(kinds) != 1:
                raise ValueError(f"candidates for slot {name} must share one size and interpolation")
            shapes.append(kinds.pop())
        rows = choice.to(torch.int64)
        images = torch.arange(len(self.index), device=self.device).expand_as(rows)
        return self._map(
            lambda tensor: tensor[rows, images],
            slots=tuple(slots),
            size=tuple(size for size, _ in shapes),
            interpolation=tuple(interpolation for _, interpolation in shapes),
        )

    def take(self, images: Tensor) -> ViewParams:
        """The record of some images only; `images` are positions in the batch `[M]` (integers) or a mask `[N]`."""
        return self._map(
            lambda tensor: tensor[:, images],
            index=self.index[images],
            src_h=self.src_h[images],
            src_w=self.src_w[images],
        )

    @staticmethod
    def cat(parts: Sequence[ViewParams]) -> ViewParams:
        """Join records of the same images slot by slot (slot names must differ).

        Raises:
            ValueError: the parts are of different images, seeds or epochs, or carry different extras.
        """
        first = parts[0]
        for part in parts[1:]:
            same = (part.seed, part.epoch) == (first.seed, first.epoch) and torch.equal(part.index, first.index)
            if not same or part.extras.keys() != first.extras.keys():
                raise ValueError("only records of the same images, seed, epoch and extras can be joined")
        joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in FIELDS}
        for name in ("slots", "size", "interpolation"):
            joined[name] = sum((getattr(part, name) for part in parts), ())
        extras = {name: torch.cat([part.extras[name] for part in parts]) for name in first.extras}
        return replace(first, **joined, extras=extras)

    def scaled(self, scale: float) -> ViewParams:
        """The same views at another resolution: sizes and blur times `scale`, sides at least one pixel."""
        if scale == 1.0:
            return self
        size = tuple((max(1, round(h * scale)), max(1, round(w * scale))) for h, w in self.size)
        return replace(self, size=size, sigma=self.sigma * scale)

    def to(self, device: torch.device | str) -> ViewParams:
        """The record on another device. All drawn fields travel as one packed float32 copy that does not block."""
        device = torch.device(device)
        if device == self.device or (device.type == self.device.type and device.index is None):
            return self
        drawn = [(name, tensor) for name, tensor in self._per_view() if name != "key"]  # 64 bits are no float32
        packed = send(torch.stack([tensor.to(torch.float32) for _, tensor in drawn]), device)
        moved: dict[str, Any] = {name: packed[i].to(tensor.dtype) for i, (name, tensor) in enumerate(drawn)}
        for name in ("index", "src_h", "src_w", "key"):
            moved[name] = send(getattr(self, name), device)
        return replace(self, **moved, extras={name: send(x, device) for name, x in self.extras.items()})

    # --- geometry -----------------------------------------------------------------------------------------------------

    def box_norm(self) -> Tensor:
        """Crop boxes `[V, N, 4]` as (x0, y0, x1, y1) in fractions of the source, float32."""
        x0, y0 = self.left / self.src_w, self.top / self.src_h
        x1, y1 = (self.left + self.w) / self.src_w, (self.top + self.h) / self.src_h
        return torch.stack([x0, y0, x1, y1], dim=-1)

    def view_to_source(self, slot: str | int) -> Tensor:
        """Affine maps `[N, 2, 3]` from pixel positions of a view to those of its source: `(x, y)_src = A @ (x_v, y_v,
        1)`.

        Positions are pixel indices (the centre of the first pixel is 0): `x_src = left + (x_v + .5) w / S - .5`, with
        x_v replaced by S-1-x_v in flipped views.
        """
        v = self.slot(slot)
        size_h, size_w = self.size[v]
        step_y, step_x = self.h[v] / size_h, self.w[v] / size_w
        mirror = self.flip[v]
        a = torch.where(mirror, -step_x, step_x)
        # A flipped row starts at the right end of the box: half a step inside it.
        first_x = torch.where(mirror, self.left[v] + self.w[v] - step_x / 2, self.left[v] + step_x / 2) - 0.5
        first_y = self.top[v] + step_y / 2 - 0.5
        zero = torch.zeros_like(a)
        return torch.stack([torch.stack([a, zero, first_x], -1), torch.stack([zero, step_y, first_y], -1)], -2)

    def iou(self, a: str | int, b: str | int) -> Tensor:
        """Intersection over union `[N]` of the crop boxes of two slots."""
        i, j = self.slot(a), self.slot(b)
        across = _shared_length(self.left[i], self.w[i], self.left[j], self.w[j])
        down = _shared_length(self.top[i], self.h[i], self.top[j], self.h[j])
        shared = across * down
        return shared / (self.h[i] * self.w[i] + self.h[j] * self.w[j] - shared)

    def overlap_patches(self, a: str | int, b: str | int, grid_a: Size, grid_b: Size) -> Tensor:
        """Which patches of two views show a common piece of the source: bool `[N, Ta, Tb]`, T = rows * columns.

        A grid cuts its view into rows x columns equal cells, numbered row-major as the model's tokens are. Each cell is
        a half-open rectangle of the source (mirrored in flipped views); entry [n, s, t] is true if cell s of view a and
        cell t of view b intersect in a positive area (cells that only touch do not). `.nonzero()` lists the pairs.
        """
        i, j = self.slot(a), self.slot(b)
        down = self._cells_meet(self.top[i], self.h[i], None, self.top[j], self.h[j], None, grid_a[0], grid_b[0])
        across = self._cells_meet(
            self.left[i], self.w[i], self.flip[i], self.left[j], self.w[j], self.flip[j], grid_a[1], grid_b[1]
        )
        both = down[:, :, None, :, None] & across[:, None, :, None, :]
        return both.reshape(len(self.index), grid_a[0] * grid_a[1], grid_b[0] * grid_b[1])

    @staticmethod
    def _cells_meet(
        lo_a: Tensor,
        length_a: Tensor,
        flip_a: Tensor | None,
        lo_b: Tensor,
        length_b: Tensor,
        flip_b: Tensor | None,
        cells_a: int,
        cells_b: int,
    ) -> Tensor:
        """Whether cells s of a and t of b share more than a rounding error on one axis, `[N, cells_a, cells_b]`."""
        start_a, step_a = _cells(lo_a, length_a, flip_a, cells_a)
        start_b, step_b = _cells(lo_b, length_b, flip_b, cells_b)
        shared = _shared_length(start_a[:, :, None], step_a[:, None, None], start_b[:, None, :], step_b[:, None, None])
        return shared > 1e-6 * torch.minimum(step_a, step_b)[:, None, None]

    # --- telling ------------------------------------------------------------------------------------------------------

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain dictionary a view, slot by slot, for logs and tables; extras become nested lists."""
        columns = {name: tensor.tolist() for name, tensor in [*self._per_view(), *self.extras.items()]}
        index, src_h, src_w = self.index.tolist(), self.src_h.tolist(), self.src_w.tolist()
        rows = []
        for v, name in enumerate(self.slots):
            for n in range(len(index)):
                row: dict[str, Any] = {
                    "slot": name,
                    "index": index[n],
                    "epoch": self.epoch,
                    "seed": self.seed,
                }
                row |= {"src_h": src_h[n], "src_w": src_w[n], "size": self.size[v]}
                rows.append(row | {column: values[v][n] for column, values in columns.items()})
        return rows


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on a device, without waiting for it: CUDA can do that from pinned memory only."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.requires_grad:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def _shared_length(lo_a: Tensor, length_a: Tensor, lo_b: Tensor, length_b: Tensor) -> Tensor:
    """Length of the intersection of two intervals (0 when apart)."""
    return (torch.minimum(lo_a + length_a, lo_b + length_b) - torch.maximum(lo_a, lo_b)).clamp(min=0)


def _cells(lo: Tensor, length: Tensor, flip: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Starts `[N, count]`, in the order in which the view shows them, and length `[N]` of an interval's equal cells."""
    step = length.to(torch.float64) / count
    position = torch.arange(count, device=lo.device).expand(len(lo), count)
    if flip is not None:
        position = torch.where(flip[:, None], count - 1 - position, position)
    return lo[:, None] + position * step[:, None], step
