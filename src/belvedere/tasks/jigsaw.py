"""Jigsaw: in which of a few orders do nine tiles of an image lie?

"Unsupervised learning of visual representations by solving jigsaw puzzles", Noroozi and Favaro, ECCV 2016,
arXiv:1603.09246, as ScatSimCLR regularises with it (Kinakh et al., ICCV workshops 2021; spec patch_and_pretext 5.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from belvedere.errors import UserError
from belvedere.tasks._permutations import far_permutations
from belvedere.tasks.contract import Answer, Request, Scene, Surroundings, Task
from belvedere.views.params import send

SIDE = 3
TILES = SIDE**2
SLOT = "global_a"
# A tile is looked at as an image, and the library sets smaller images aside (`images.min_side`).
SMALLEST = 8
EACH = 512
"""Width of the head's layer that every tile passes alone."""


class JigsawOptions(BaseModel):
    """Settings of the jigsaw."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    weight: float = Field(0.3, ge=0)
    """Factor of the loss, the paper's lambda."""
    permutations: int = Field(35, ge=2, le=1000)
    """Orders to tell apart; chance is one over it."""
    hidden: int = Field(4096, ge=1)
    """Width of the head's layer that reads all tiles together; most of the head's weights."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """In both hidden layers of the head."""


class Jigsaw(Task):
    """Nine tiles of the whole image, each enlarged to the size of a view, encoded one by one in a drawn order.

    Costs nine more forwards of every image. Tiles are normalised as all views are: the paper's code leaves that out for
    tiles alone, and the batch statistics that evaluation uses would then be of two kinds of pixels.
    """

    Options = JigsawOptions

    def __init__(self, options: JigsawOptions, around: Surroundings) -> None:
        """Draw up the orders, and build the head.

        Raises:
            UserError: when the network, or the image, has too few places for nine tiles.
        """
        super().__init__(options, around)
        _refuse_too_small(around)
        # "Start anywhere": at the order in which nothing is shuffled.
        orders = torch.from_numpy(far_permutations(options.permutations, range(TILES)))
        self.register_buffer("orders", orders, persistent=False)
        self.of_tile = _layer(around.dim, EACH, options.dropout)
        self.of_board = nn.Sequential(
            _layer(TILES * EACH, options.hidden, options.dropout),
            nn.Linear(options.hidden, options.permutations),
        )

    def requests(self, scene: Scene) -> dict[str, Request]:
        """The shuffled tiles of every image, `tile_t` at place t of the board."""
        truth = scene.integers("jigsaw/order", self.options.permutations)
        tiles = cut_tiles(scene.whole())
        order = self.get_buffer("orders")[send(truth, tiles.device)]
        shuffled = shuffle(tiles, order)
        pixels = {f"tile_{place}": tile for place, tile in enumerate(shuffled.unbind(1))}
        return {"board": Request(pixels=pixels, note={"truth": truth})}

    def loss(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """{"order": (B,) cross-entropy over the orders}."""
        logits = self._logits(answers["board"])
        truth = send(answers["board"].request.note["truth"], logits.device)
        return {"order": self.options.weight * F.cross_entropy(logits, truth, reduction="none")}

    def show(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """`shuffled` (B, 9, C, h, w) tiles as they were seen; orders (B, 9) `truth` and `said`, and all `orders`."""
        board, orders = answers["board"], self.get_buffer("orders")
        said = self._logits(board).argmax(1)
        pixels = board.request.pixels
        assert pixels is not None
        return {
            "shuffled": torch.stack(list(pixels.values()), 1),
            "truth": orders[send(board.request.note["truth"], orders.device)],
            "said": orders[said],
            "orders": orders,
        }

    def _logits(self, board: Answer) -> Tensor:
        """(B, orders) float32."""
        tiles = [self.of_tile(features.cls) for features in board.student.values()]
        logits: Tensor = self.of_board(torch.cat(tiles, 1)).float()
        return logits


def _layer(fan_in: int, fan_out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(dropout))


def _refuse_too_small(around: Surroundings) -> None:
    """A view must have as many places as the board has, for the network and in pixels.

    A network that cuts a view into fewer pieces than the board tells fewer places apart than it is asked about: each of
    its patches is larger than a tile. Fewer than 8 pixels a tile are mostly blur once they fill a view.
    """
    (height, width), (h, w) = around.sizes[SLOT], around.grids[SLOT]
    if min(h, w) < SIDE:
        raise UserError(
            f"task jigsaw: the network sees a view as {h} x {w} tokens, coarser than the {SIDE} x {SIDE} tiles to be "
            "ordered; use a smaller backbone.patch or a larger views.size"
        )
    if min(height, width) < SIDE * SMALLEST:
        raise UserError(
            f"task jigsaw: a tile of {height} x {width} pixels has fewer than {SMALLEST} pixels a side; "
            f"make views.size at least {SIDE * SMALLEST}"
        )


def tile_boxes(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of the nine tiles, row by row; rounded inwards, as the paper's code does."""
    edges_x, edges_y = _thirds(width), _thirds(height)
    return [(left, top, right, bottom) for top, bottom in edges_y for left, right in edges_x]


def _thirds(length: int) -> list[tuple[int, int]]:
    # Centre and half a tile, as the paper's code has it: its rounding takes a pixel more from some last tiles.
    half = length / SIDE / 2
    centres = [2 * half * place + half for place in range(SIDE)]
    return [(math.ceil(centre - half), int(centre + half)) for centre in centres]


def cut_tiles(images: Tensor) -> Tensor:
    """(B, C, h, w) images -> (B, 9, C, h, w) tiles, each enlarged to the whole size."""
    size = images.shape[-2:]
    tiles = [
        F.interpolate(images[..., top:bottom, left:right], size, mode="bilinear", align_corners=False)
        for left, top, right, bottom in tile_boxes(*size)
    ]
    return torch.stack(tiles, 1)


def shuffle(tiles: Tensor, order: Tensor) -> Tensor:
    """Tile t of the output is tile `order[t]`: (B, 9, ...) tiles and (B, 9) orders."""
    rows = torch.arange(len(tiles), device=tiles.device).unsqueeze(1)
    return tiles[rows, order]
