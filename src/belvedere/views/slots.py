"""Slots: the named places of a recipe (`global_a`, `local_1`, ...) and the law each draws its views from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import Literal

Interpolation = Literal["bicubic", "bilinear"]
Size = tuple[int, int]

# Pixels at or above this level are inverted (DINO, MoCo v3: `Solarize(128)` on uint8), as a share of 255.
SOLARIZE_THRESHOLD = 128 / 255


@dataclass(frozen=True)
class Slot:
    """The augmentation law of one view (specs/objectives.md 1.6). Sizes are (height, width); p's are probabilities.

    `scale` is the range of the crop's share of the source area, `ratio` that of its width / height. `jitter` holds the
    strengths of brightness, contrast, saturation (factor ~ U(max(0, 1-x), 1+x)) and hue (~ U(-x, x) turns). `sigma` is
    in output pixels.
    """

    name: str
    size: Size
    scale: tuple[float, float]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: float = 0.0

    @property
    def is_target(self) -> bool:
        """Whether a teacher sees this view: global views are targets, local ones are not."""
        return self.name.startswith("global")


@dataclass(frozen=True)
class ViewSettings:
    """A recipe's views in one flat record; `build_slots` turns it into slots. The defaults are DINO's two globals.

    `blur_p` and `solarize_p` are for (`global_a`, the other globals, the locals). `sigma` is taken in pixels of the
    view as it is: the papers state it for 224 px, and their small-image recipes switch blur off rather than scale it.
    """

    size: Size = (224, 224)
    globals: int = 2
    locals: int = 0
    local_size: Size = (96, 96)
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: tuple[float, float, float] = (1.0, 0.1, 0.5)
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: tuple[float, float, float] = (0.0, 0.2, 0.0)


def build_slots(settings: ViewSettings, channels: int) -> tuple[Slot, ...]:
    """The slots of a recipe: globals first (`global_a`, `global_b`, ...), then locals (`local_1`, `local_2`, ...).

    Saturation, hue and grayscale are defined for three channels only and are off otherwise (`colour_note` says so).

    Raises:
        ValueError: no global view, more than 26 of them, or a negative number of locals.
    """
    if not 1 <= settings.globals <= len(ascii_lowercase) or settings.locals < 0:
        raise ValueError("a recipe has 1 to 26 global views and 0 or more local ones")
    colour = channels == 3
    brightness, contrast, saturation, hue = settings.jitter
    common = Slot(
        name="global_a",
        size=settings.size,
        scale=settings.global_scale,
        ratio=settings.ratio,
        interpolation=settings.interpolation,
        flip=settings.flip,
        jitter=(brightness, contrast, saturation if colour else 0.0, hue if colour else 0.0),
        jitter_p=settings.jitter_p,
        gray_p=settings.gray_p if colour else 0.0,
        sigma=settings.sigma,
    )
    slots = []
    for position in range(settings.globals):
        family = min(position, 1)
        slots.append(
            replace(
                common,
                name=f"global_{ascii_lowercase[position]}",
                blur_p=settings.blur_p[family],
                solarize_p=settings.solarize_p[family],
            )
        )
    for position in range(settings.locals):
        slots.append(
            replace(
                common,
                name=f"local_{position + 1}",
                size=settings.local_size,
                scale=settings.local_scale,
                blur_p=settings.blur_p[2],
                solarize_p=settings.solarize_p[2],
            )
        )
    return tuple(slots)


def colour_note(settings: ViewSettings, channels: int) -> str | None:
    """One sentence for the user when the recipe asks for colour operations that these images cannot have, else None."""
    asked = settings.gray_p > 0 or (settings.jitter_p > 0 and max(settings.jitter[2:]) > 0)
    if channels == 3 or not asked:
        return None
    plural = "s" if channels != 1 else ""
    return f"images have {channels} channel{plural}, not 3: saturation, hue and grayscale are off"
