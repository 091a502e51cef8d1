"""What the name of a scattering network says: `scatnet30_l16_j2_norm`. Torch is not imported here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from belvedere.errors import UserError

# Number of residual blocks -> runs of (width, blocks), all at stride 1 (spec patch_and_pretext 5.1).
BLOCKS = {
    8: ((64, 4), (128, 4)),
    12: ((128, 4), (64, 4), (128, 4)),
    16: ((128, 6), (64, 4), (128, 6)),
    30: ((128, 30),),
    45: ((128, 15), (64, 15), (128, 15)),
}
_NAME = re.compile(r"scatnet(?P<blocks>\d+)(?:_l(?P<angles>\d+))?(?:_j(?P<scales>\d+))?(?P<norm>_norm)?")


@dataclass(frozen=True)
class ScatNetName:
    """A scattering network's shape.

    Attributes:
        blocks: residual blocks, a key of `BLOCKS`.
        angles: L, directions of the wavelets, 16 in the paper.
        scales: J, octaves of the wavelets, 2 in the paper; the coefficients have a stride of 2^J pixels.
        normalise: whether coefficients are normalised a channel (spec 5.1: the paper's code does not).
    """

    blocks: int
    angles: int = 16
    scales: int = 2
    normalise: bool = False

    @property
    def stride(self) -> int:
        """Pixels from one coefficient to the next."""
        return int(2**self.scales)

    @property
    def coefficients(self) -> int:
        """K = 1 + L J + L^2 J (J - 1) / 2 coefficients of each colour, orders 0 to 2."""
        first = self.angles * self.scales
        return 1 + first + self.angles**2 * self.scales * (self.scales - 1) // 2

    def __str__(self) -> str:
        return f"scatnet{self.blocks}_l{self.angles}_j{self.scales}{'_norm' * self.normalise}"


def read_name(name: str) -> ScatNetName | None:
    """The network that `backbone.name` names, or None where it is none of ours.

    Raises:
        UserError: for a name that begins as ours and is none.
    """
    if not name.startswith("scatnet"):
        return None
    found = _NAME.fullmatch(name)
    if found is None or int(found["blocks"]) not in BLOCKS:
        names = ", ".join(f"scatnet{blocks}" for blocks in BLOCKS)
        raise UserError(
            f"backbone.name '{name}': there are {names}, each with optional _l16 (angles), _j2 (scales) and _norm, "
            "as scatnet8_l4_j2_norm"
        )
    angles, scales = int(found["angles"] or 16), int(found["scales"] or 2)
    if angles < 1 or not 1 <= scales <= 6:
        raise UserError(f"backbone.name '{name}': needs at least one angle (_l) and 1 to 6 scales (_j)")
    return ScatNetName(int(found["blocks"]), angles, scales, found["norm"] is not None)
