"""Where a run's time would go: some real steps of a throw-away trainer, part by part, and what would change them."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from belvedere.backbones.weights import Weights
from belvedere.config import Resolved
from belvedere.images.canvases import Canvases, decoded
from belvedere.images.items import Source
from belvedere.pretrain.compose import facts_of, make_feed, make_trainer, settle
from belvedere.pretrain.engine import make_fabric
from belvedere.pretrain.loop import try_steps
from belvedere.pretrain.progress import clock
from belvedere.pretrain.start import check_fit, cut_up, share_of, trial_of, workers_of
from belvedere.pretrain.stopwatch import Laps
from belvedere.views import native

# The parts of a step in the order in which they happen, and what each is.
PARTS = {
    "waiting": "for images from the cache",
    "copy": "images to the device",
    "policy": "choosing and learning views",
    "views": "crops and colours",
    "targets": "what the student is compared with",
    "forward": "student and losses",
    "backward": "gradients",
    "update": "optimiser and teacher",
    "rest": "plans, norms, log",
}


@dataclass(frozen=True)
class Profile:
    """What a step of a run takes, and what reading its images takes.

    Attributes:
        device, precision: of the run.
        images: how many there are.
        batch: images of a step.
        steps: how many were measured.
        decoding: images a second from files to canvases, once.
        seconds: a step's, by the names of `PARTS`.
        memory: most bytes in use, of the device or of this process.
        advice: what would take less time, in sentences.
        measured: images that steps were made of, where not all were decoded; else 0.
    """

    device: str
    precision: str
    images: int
    batch: int
    steps: int
    decoding: float
    seconds: dict[str, float]
    memory: int
    advice: tuple[str, ...]
    measured: int = 0

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    def share(self, *parts: str) -> float:
        """Of a step's time, 0 to 1."""
        return sum(self.seconds[part] for part in parts) / self.step

    def lines(self) -> list[str]:
        """For people."""
        epoch, once = self.step * self.images / self.batch, self.images / self.decoding
        table = [f"  {part:9} {self.share(part):6.1%}  {self._time(part)}  {PARTS[part]}" for part in self.seconds]
        some = f"measured on {self.measured:,} of the images, evenly spaced: the others are not decoded yet"
        return [
            *([some] if self.measured else []),
            f"reading: {self.decoding:,.0f} images/s: {clock(once)} for {self.images:,}, once, then from the cache",
            f"a step of {self.batch} images: {self.step * 1000:,.1f} ms on {self.device} in {self.precision}, "
            f"{self.batch / self.step:,.0f} images/s (mean of {self.steps})",
            *table,
            f"an epoch of {self.images:,} images: {clock(epoch)}; memory: {self.memory / 2**30:.1f} GiB",
            *(f"- {sentence}" for sentence in self.advice),
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"step": self.step}

    def _time(self, part: str) -> str:
        return f"{self.seconds[part] * 1000:9.1f} ms"


def measure(
    source: Source,
    canvases: Canvases,
    resolved: Resolved,
    device: str,
    weights: Weights | None = None,
    seconds: float = 15.0,
) -> Profile:
    """Measure about `seconds` of training, from the middle of a run that nothing is kept of.

    Args:
        source: the files, not cut into tiles yet.
        canvases: of all of them, or of some, evenly spaced; then the rest is taken to be like them.
        weights: that the run would start from, which may decide the network's shape.

    Raises:
        UserError: for settings that do not fit the images, and a batch that does not fit into memory.
    """
    source = cut_up(source, resolved)
    share = share_of(canvases, source)
    decoding = decoding_speed(source, canvases, workers_of(resolved), resolved.config.images.min_side)
    whole = round(len(canvases) / share)
    # What is derived from the number of images is that of the whole run.
    resolved, facts = settle(resolved, replace(facts_of(canvases, device), images=whole))
    check_fit(resolved.config, canvases)
    if resolved.config.train.steps == "auto":
        resolved = trial_of(resolved, facts)
    # Half of a short run would be over before it is measured.
    steps = max(1000, int(resolved.config.train.steps))
    config = resolved.with_values({"train.steps": (steps, "trial")}).config
    if config.train.threads:
        torch.set_num_threads(int(config.train.threads))
    fabric = make_fabric(device, str(config.train.precision))
    trainer, feed = make_trainer(config, canvases, fabric, weights), make_feed(config, canvases, fabric)
    # Some images must not lie on the device where all would not.
    feed = replace(feed, room=int(share * feed.room))
    laps = Laps(fabric.device)

    def begin() -> None:
        trainer.around = laps

    times = try_steps(trainer, feed, seconds, begin)
    found = laps.read()
    parts = {part: found.get(part, 0.0) / len(times) for part in PARTS}
    parts["rest"] = max(0.0, statistics.fmean(times) - sum(parts.values()))
    precision, memory = str(config.train.precision), _memory(device)
    measured = len(canvases) if share < 1 else 0
    known = Profile(device, precision, whole, feed.batch, len(times), decoding, parts, memory, (), measured)
    cheaper = trainer.parts.policy.cheaper
    compiled = device != "cpu" or native.library() is not None
    return replace(known, advice=tuple(advice(known, cheaper, bool(config.views.locals), facts.bf16, compiled)))


def decoding_speed(
    source: Source, canvases: Canvases, workers: int | None, min_side: int, seconds: float = 3.0
) -> float:
    """Images a second that are read and decoded on all cores: some of all, for at most `seconds`."""
    rows = range(0, len(source), max(1, len(source) // 2000))
    began, done = time.perf_counter(), 0
    for _ in decoded(source, rows, canvases.side, canvases.channels, canvases.scale, min_side, workers, progress=False):
        done += 1
        if time.perf_counter() - began > seconds:
            break
    return done / (time.perf_counter() - began)


def advice(found: Profile, cheaper: str, has_locals: bool, bf16: bool, compiled: bool) -> list[str]:
    """What would take less time, where there is something.

    Args:
        cheaper: settings with which the view policy does, in words.
        has_locals: whether there are local views.
        bf16: whether the device has instructions for it.
        compiled: whether views are made as fast as they can be there.
    """
    said = []
    if found.share("waiting") > 0.05:
        said.append(
            f"the network waits for images {found.share('waiting'):.0%} of the time: "
            "put the cache on a faster disk ($BELVEDERE_CACHE)"
        )
    if found.share("policy") > 0.25:
        said.append(f"choosing views takes {found.share('policy'):.0%}: {cheaper}")
    if found.share("copy", "views") > 0.25:
        fewer = "fewer views.locals, " if has_locals else ""
        said.append(f"views take {found.share('copy', 'views'):.0%}: {fewer}a smaller views.size or no blur take less")
    if not compiled and found.share("views") > 0.05:
        said.append(
            f"views take {found.share('views'):.0%}: a C++ compiler (c++, g++ or clang++) makes them much faster"
        )
    if found.share("update") > 0.2:
        said.append(
            f"the update takes {found.share('update'):.0%} whatever the batch: a larger train.batch needs fewer"
        )
    if found.precision == "float32" and bf16:
        said.append("this device has bfloat16: train.precision=bf16 computes faster")
    network = found.share("targets", "forward", "backward")
    if network > 0.6:
        smaller = "a larger backbone.patch, a smaller views.size or backbone take less"
        said.append(f"the network takes {network:.0%}, as it should; {smaller}")
    return said


def _memory(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    # Kilobytes, but bytes on macOS.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
