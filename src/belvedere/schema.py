"""The one typed schema of a run: every core key, its kind and its range. Values that stay `auto` are derived later.

Torch is not imported here, so that a wrong key is answered at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from belvedere.images.cutting import Cutting


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError("two numbers above 0, the smaller one first")
    return pair


def _shares(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1] <= 1:
        raise ValueError("two shares of the image in (0, 1], the smaller one first")
    return pair


def _strengths(jitter: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    if min(jitter) < 0 or jitter[3] > 0.5:
        raise ValueError("four strengths of at least 0, that of the hue at most 0.5")
    return jitter


def _tile_side(tile: int) -> int:
    if tile and tile < SMALLEST_TILE:
        raise ValueError(f"0 for whole images, or at least {SMALLEST_TILE} pixels")
    return tile


def _worded(value: Any) -> Any:
    return "none" if value is None else value


SMALLEST_TILE = 32
Auto = Literal["auto"]
Reading = Literal["auto", "cls", "avg", "cls+avg", "last4", "last4+avg", "cls+gem"]
"""Which vector of an image is read: the one list, explained and read in `measure/readings.py`."""
Count: TypeAlias = Annotated[int, Field(ge=1)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Range: TypeAlias = Annotated[tuple[float, float], AfterValidator(_rising)]
Unit: TypeAlias = Annotated[tuple[float, float], AfterValidator(_shares)]
Jitter: TypeAlias = Annotated[tuple[float, float, float, float], AfterValidator(_strengths)]
Size: TypeAlias = Count | tuple[Count, Count]
# Where "none" is a name and not the absence of a value, which it is elsewhere on the command line.
Word: TypeAlias = Annotated[str, BeforeValidator(_worded)]


class Section(BaseModel):
    """Part of the core schema; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PluginSection(BaseModel):
    """Section whose other keys are options of the plug-in that it names."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class Paper(Section):
    """What the paper used; the derivation scales from here, and gives these values back at the paper's size."""

    images: Count = 1_281_167
    size: Count = 224
    local_size: Count = 96
    batch: Count = 1024
    epochs: Positive = 100
    warmup_epochs: NotNegative = 10
    lr: Positive = 1e-3
    """Peak learning rate at the paper's batch."""
    lr_rule: Literal["sqrt", "linear"] = "sqrt"
    global_scale: Unit = (0.08, 1.0)
    local_scale: Unit = (0.05, 0.4)
    jitter: Jitter = (0.4, 0.4, 0.2, 0.1)
    blur_p: tuple[Probability, Probability, Probability] = (0.5, 0.5, 0.5)
    locals: int = Field(0, ge=0)
    drop_path: float = Field(0.0, ge=0, lt=1)
    heads: Count | None = None
    """Attention heads of its ViT-S, where they are not the six of DINO's."""
    freeze_patch: bool = False
    init: Literal["dino", "mocov3"] = "dino"
    teacher_temp: Positive | None = None
    """Where it is not the one of the objective's own paper."""
    norm_last_layer: bool | None = None
    """As teacher_temp."""


class Images(Section):
    """How files become canvases."""

    canvas: Count | Auto = "auto"
    """Short side of a decoded image, pixels."""
    channels: Count | Auto = "auto"
    labels: Word = "auto"
    """auto | none | folder | path of a CSV with `path,label`."""
    min_side: int = Field(8, ge=1)
    tile: Annotated[int, AfterValidator(_tile_side)] = 0
    """Side of the squares, pixels, that larger images are cut into, each an image of its own; 0 = whole images."""
    tile_overlap: float = Field(0.0, ge=0, le=0.9)
    """Share of a tile's side that it has in common with the next one."""
    binarize: Annotated[Literal["none", "sauvola"], BeforeValidator(_worded)] = "none"
    """none | sauvola: pages of dark writing as white ink on black."""
    min_ink: Probability = 0.0
    """Images, or tiles, of `binarize` with a smaller share of ink are set aside."""
    mean: tuple[Probability, ...] | Auto = "auto"
    std: tuple[Positive, ...] | Auto = "auto"
    workers: Annotated[int, Field(ge=0)] | Auto = "auto"

    @field_validator("min_ink")
    @classmethod
    def _of_ink(cls, share: float, info: ValidationInfo) -> float:
        if share and info.data.get("binarize") == "none":
            raise ValueError("ink is known of binarized pages only: set images.binarize=sauvola too")
        return share

    @property
    def cutting(self) -> Cutting:
        """What is made of files, as images of a run's are."""
        return Cutting(self.tile, self.tile_overlap, self.binarize, self.min_ink)


class Views(PluginSection):
    """The slots of a view and the policy that fills them; other keys are the policy's options."""

    policy: str = "random"
    size: Size | Auto = "auto"
    """Pixels; one number, or [height, width]."""
    globals: int = Field(2, ge=1, le=26)
    locals: Annotated[int, Field(ge=0)] | Auto = "auto"
    local_size: Size | Auto = "auto"
    global_scale: Unit | Auto = "auto"
    local_scale: Unit | Auto = "auto"
    ratio: Range = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: Probability = 0.5
    jitter: Jitter | Auto = "auto"
    jitter_p: Probability = 0.8
    gray_p: Probability = 0.2
    blur_p: tuple[Probability, Probability, Probability] | Auto = "auto"
    """Of global_a, of the other globals, of the locals."""
    sigma: Range = (0.1, 2.0)
    solarize_p: tuple[Probability, Probability, Probability] = (0.0, 0.0, 0.0)


class Backbone(Section):
    """The network."""

    name: str = "auto"
    weights: str = ""
    """What the run starts from: timm:NAME, a run's folder or an official .pth; empty = freshly drawn."""
    patch: Count | Auto = "auto"
    width: Count | None = None
    depth: Count | None = None
    heads: Count | Auto | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] | Auto = "auto"
    class_token: bool | None = None
    """Whether a transformer has a class token; null keeps the named model's habit. Without: the mean of all patches."""
    pos_embed: bool = True
    """Whether a transformer has position embeddings (RelViT pretrains without)."""
    freeze_patch: bool | Auto = "auto"
    """Keep the random patch projection (MoCo v3's cure for instability)."""
    init: Literal["dino", "mocov3"] | Auto = "auto"
    """The law a transformer's weights are drawn from; mocov3 has fixed sin-cos positions."""
    positions: Literal["dino", "timm"] = "dino"
    """How position embeddings are resampled at other resolutions."""


class Objective(PluginSection):
    """The loss; other keys are the objective's options."""

    name: Word = "simclr"


class Train(Section):
    """Budget, optimiser, machine."""

    epochs: Positive | Auto | None = "auto"
    minutes: Positive | None = None
    steps: Count | Auto = "auto"
    batch: Count | Auto = "auto"
    """Images per optimiser step, over all processes."""
    accumulate: Count = 1
    optimizer: Literal["adamw", "adamw_095", "sgd", "lars", "lars_torch"] = "adamw"
    lr: Positive | Auto = "auto"
    lr_end: NotNegative = 0.0
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the learning rate from each layer of the backbone to the one below it."""
    freeze_trunk: float = Field(0.0, ge=0, lt=1)
    """Share of the steps, at the beginning, in which only heads learn."""
    warmup: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Steps."""
    schedule: Literal["dino", "simclr", "simsiam", "relvit"] = "dino"
    """dino and simclr warm up linearly and then follow a cosine; DINO's warm-up includes its peak, SimCLR's does not.
    simsiam follows a cosine from the first epoch on, in one stair an epoch. relvit warms up and then follows a quarter
    of a cosine, which falls slowly first and fast at the end."""
    weight_decay: NotNegative = 0.05
    weight_decay_end: NotNegative | None = None
    decay: Literal["matrices", "all"] = "matrices"
    clip_tensor: NotNegative = 0.0
    """Largest gradient norm of each tensor by itself, 0 = off."""
    clip_global: NotNegative = 0.0
    """Largest gradient norm of all tensors together, 0 = off."""
    weighting: Literal["fixed", "exp", "square"] = "fixed"
    """How objective and tasks are weighed: as given, or also by learned weights as in SiT v1 (exp) or v2 (square)."""
    precision: Literal["float32", "bf16"] | Auto = "auto"
    compile: bool = False
    recompute: bool = False
    """Compute the student's transformer blocks again in the backward pass in place of keeping all that they computed:
    the same losses in less memory, and a longer step."""
    shard: bool = False
    """Each process holds a part of the transformer blocks, of their optimiser state and of the teacher's, in place of
    all; the losses are the same. For several processes, and networks that fill a device."""
    seed: int = Field(0, ge=0)
    checkpoint_minutes: Positive = 5.0
    threads: Annotated[int, Field(ge=0)] | Auto = "auto"


class Monitor(Section):
    """What is watched while training."""

    log_every: Count = 10
    """Steps between two lines of metrics.jsonl with more than the loss."""
    probe: int = Field(1024, ge=16)
    """Images of the fixed probe set of the health page."""
    knn: int = Field(2000, ge=0)
    """Most images of the online k-NN, 0 = off."""
    every: Positive | Auto = "auto"
    """Epochs between two looks at health and k-NN."""


class Health(Section):
    """What ends a run early."""

    stop: bool = True
    """Stop when the output is constant or not finite over 200 steps."""
    stop_below_start: bool = False
    """Stop when the online k-NN falls below that of the weights the run started from; the best look is exported."""


class Config(Section):
    """A whole run."""

    recipe: str = "simclr"
    data: str = ""
    """Where the images came from; a record of the run, not a setting."""
    paper: Paper = Paper()
    images: Images = Images()
    views: Views = Views()
    backbone: Backbone = Backbone()
    objective: Objective = Objective()
    tasks: tuple[str, ...] = ()
    task: dict[str, dict[str, Any]] = {}
    train: Train = Train()
    monitor: Monitor = Monitor()
    health: Health = Health()

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if value.count(name) > 1:
                raise ValueError(f"a list that names each task once, not {name} twice")
        return value

    @property
    def learns_labels(self) -> bool:
        """Whether labels are trained on, so that numbers on training images say little of others."""
        return self.objective.name == "supervised"
