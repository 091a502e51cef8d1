"""The loop of `belvedere generate`: steps, pictures, checkpoints, and an end that loses nothing."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from belvedere.atomic import write_text
from belvedere.errors import UserError
from belvedere.generate import page, pictures, quality
from belvedere.generate.fidelity import Judged, judge
from belvedere.generate.generator import Generator
from belvedere.generate.health import STUCK, Health
from belvedere.generate.settings import Plan, Settings, derive, flatten, from_yaml, to_yaml
from belvedere.generate.trainer import Trainer, latents, make_generator, paint
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import Source
from belvedere.images.survey import sample_sides
from belvedere.measure.encoder import Encoder
from belvedere.opened import load
from belvedere.pretrain import checkpoint
from belvedere.pretrain.feed import Feed
from belvedere.pretrain.folder import RunFolder
from belvedere.pretrain.loop import signals_caught
from belvedere.pretrain.progress import Progress
from belvedere.pretrain.start import writing

MAY_CHANGE = ("train.epochs", "train.steps", "train.checkpoint_minutes", "images.workers")
"""What may change when a run is resumed."""
SHOWN = ("images.size", "generator.dim", "discriminator.dim", "train.batch", "train.steps", "train.lr", "train.warmup")
WEIGHTS = "generator.safetensors"


class GeneratorFolder(RunFolder):
    """The folder of a run that makes images: it has no encoder, so its settings have a name of their own."""

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / "generator.yaml"


@dataclass
class Loop:
    """A run in motion. `reason` says why it ended early; empty when it finished."""

    trainer: Trainer
    feed: Feed
    folder: GeneratorFolder
    settings: Settings
    judge: quality.Judge | None
    health: Health = field(default_factory=Health)
    start: int = 0
    reason: str = ""

    def run(self) -> None:
        """Train from `start` to the last step; every interruption leaves a checkpoint."""
        total, every = int(self.settings.train.steps), int(self.settings.samples.every)
        progress = Progress(total, self.start, self.feed.batch)
        if self.start == 0:
            self.look(0)
        stream = self.feed.stream(self.start, total)
        saved = time.monotonic()
        with signals_caught() as signals:
            for step in range(self.start, total):
                began = time.monotonic()
                ((_, images),) = next(stream)
                waited = time.monotonic() - began
                told = self.trainer.step(step, images)
                self.health.step(told)
                self.folder.log({"step": step, **told, "seconds": round(time.monotonic() - began, 4)})
                done = step + 1
                if done % every == 0 or done == total:
                    self.look(done)
                self.reason = f"it was stopped by {Signals(signals[0]).name}" if signals else ""
                if not self.reason and self.health.stuck:
                    self.reason = f"no loss of the last {STUCK} steps was finite; lower train.lr"
                if self.reason or done == total or time.monotonic() - saved > self._pause:
                    self.save(done)
                    saved = time.monotonic()
                progress.show(done, told["loss"], waited, lambda: self.health.verdict(self.spread), None)
                if self.reason:
                    break
        progress.close()

    spread: float = 1.0
    """Of the newest samples."""

    @property
    def _pause(self) -> float:
        return 60 * self.settings.train.checkpoint_minutes

    def look(self, done: int) -> None:
        """Draw samples of the averaged generator, and measure them."""
        settings, average = self.settings, self.trainer.average
        noise = latents(settings.train.seed, 0, settings.samples.images, average.dim, "samples")
        images = paint(average, noise)
        index = np.arange(min(settings.samples.images, len(self.feed.canvases)))
        real = self.trainer.pixels(self.feed.canvases.batch(index)).cpu()
        self.spread = quality.spread(images, real)
        found, floor = {"spread": self.spread}, {}
        if self.judge is not None:
            many = latents(settings.train.seed, 0, self.judge.count, average.dim, "measured")
            found |= self.judge.distances(paint(average, many))
            floor = {"floor": self.judge.floor} if done == 0 else {}
        samples = self.folder.path / page.SAMPLES
        with writing(samples):
            samples.mkdir(exist_ok=True)
        pictures.save(pictures.grid(images), samples / page.name_of(done))
        verdict = self.health.verdict(self.spread)
        told = {"health": verdict.word, "color": verdict.color, "why": verdict.sentences}
        self.folder.log({"step": done, "look": found, **floor, **told})

    def save(self, done: int) -> None:
        """Write the checkpoint after `done` steps."""
        state = {
            "step": done,
            "config": flatten(self.settings),
            "data": self.feed.canvases.fingerprint,
            "health": self.health.state_dict(),
            "spread": self.spread,
            "trainer": self.trainer.state_dict(),
        }
        checkpoint.save(self.folder.checkpoint, state)

    def resume(self) -> None:
        """Go back to the newest checkpoint, and cut the log to it.

        Raises:
            UserError: when it is damaged or belongs to other images.
        """
        state = checkpoint.load_run(self.folder.checkpoint)
        if state["data"] != self.feed.canvases.fingerprint:
            raise UserError(
                f"{self.folder.path}: was trained on other images than these (names or pixels changed); "
                "give the same DATA, or start a new run with another --out"
            )
        with checkpoint.fitting(self.folder.checkpoint, "networks"):
            self.trainer.load_state_dict(state["trainer"])
            self.health.load_state_dict(state["health"])
            self.start, self.spread = state["step"], float(state["spread"])
        total = int(self.settings.train.steps)
        if self.start > total:
            raise UserError(f"--resume: {self.folder.path} is at step {self.start} already, the budget ends at {total}")
        self.folder.cut_log(self.start)


def resumed(folder: GeneratorFolder, given: dict[str, Any]) -> Plan:
    """The stored settings of a run with what the user asks to change.

    Raises:
        UserError: when something else than the budget is to change.
    """
    stored = from_yaml(folder.config)
    flat = flatten(stored.settings)
    wanted = {key: value for key, value in given.items() if flat[key] != value}
    for key, value in wanted.items():
        if key not in MAY_CHANGE:
            raise UserError(
                f"--resume: {key} is {flat[key]} in this run and cannot become {value}; start a new run with --out"
            )
    changed = {key: (value, "command line, on resuming") for key, value in wanted.items()}
    if "train.epochs" in wanted:
        changed |= {"train.steps": ("auto", ""), "train.minutes": (None, "replaced by epochs on resuming")}
    elif "train.steps" in wanted:
        changed |= dict.fromkeys(("train.epochs", "train.minutes"), (None, "replaced by steps on resuming"))
    return stored.with_values(changed)


def prepare(source: Source, plan: Plan, folder: GeneratorFolder, device: str) -> Loop:
    """Images opened, settings settled, networks drawn, the folder taken, a resumed run put back to where it was.

    Raises:
        UserError: for settings that do not fit the images, or a folder that cannot be used.
    """
    images = plan.settings.images
    workers = None if images.workers == "auto" else int(images.workers)
    side = sample_sides(source)
    if images.size != "auto" and int(images.size) > 2 * side:
        raise UserError(f"images.size={images.size}: more than twice the images' own side of {side} px")
    size = int(derive(plan, images=len(source), side=side, cpu=device == "cpu").settings.images.size)
    canvases = open_canvases(source, size, channels=images.channels, workers=workers)
    plan = plan.with_values(
        {
            "data": (source.described, "the run's images"),
            "images.channels": (canvases.channels, plan.origin.get("images.channels", "the images'")),
        }
    )
    plan = derive(plan, images=len(canvases), side=side, cpu=device == "cpu")
    if plan.settings.train.threads:
        torch.set_num_threads(plan.settings.train.threads)
    if plan.settings.train.steps == "auto":
        plan = derive(_measured(plan, canvases, device), images=len(canvases), side=side, cpu=device == "cpu")
    settings = plan.settings
    judge = None
    if settings.encoder != "none":
        encoder = load(settings.encoder, device=device)
        if encoder.channels != canvases.channels:
            raise UserError(f"encoder={settings.encoder}: sees {encoder.channels} channels, not {canvases.channels}")
        judge = quality.Judge(encoder, canvases, settings.samples.measured, settings.train.seed, device)
    feed = Feed(canvases, settings.train.batch, settings.train.seed)
    loop = Loop(Trainer(settings, device), feed, folder, settings, judge)
    folder.open()
    goes_on = folder.holds_a_run() and folder.checkpoint.exists()
    if goes_on:
        loop.resume()
    else:
        folder.metrics.unlink(missing_ok=True)
        with writing(folder.path):
            canvases.write_skipped(folder.path / "skipped.csv")
    write_text(folder.config, to_yaml(plan))
    _tell(plan, loop, canvases, goes_on)
    return loop


def _tell(plan: Plan, loop: Loop, canvases: Canvases, goes_on: bool) -> None:
    """What was found and what was decided."""
    if goes_on:
        print(f"{loop.folder.path}: continues at step {loop.start} of {loop.settings.train.steps}", flush=True)
        return
    print(f"{len(canvases)} images ({len(canvases.skipped)} set aside)")
    flat = flatten(plan.settings)
    for key in SHOWN:
        print(f"  {key:20} {flat[key]!s:8} {plan.origin.get(key, 'default')}")
    print(f"run folder: {loop.folder.path}", flush=True)


def _measured(plan: Plan, canvases: Canvases, device: str) -> Plan:
    """How many steps fit the minutes, from a few real steps of a throw-away trainer."""
    minutes = float(plan.settings.train.minutes or 0)
    trial = plan.with_values({"train.steps": (1000, ""), "train.warmup": (100, ""), "samples.every": (100, "")})
    trainer = Trainer(trial.settings, device)
    feed = Feed(canvases, trial.settings.train.batch, trial.settings.train.seed)
    times: list[float] = []
    for step, ((_, images),) in enumerate(feed.stream(0, 1000)):
        began = time.monotonic()
        trainer.step(step, images)
        times.append(time.monotonic() - began)
        if len(times) > 5 and sum(times) > min(5.0, 0.05 * 60 * minutes):
            break
    a_step = statistics.fmean(times[2:])
    # A tenth for pictures, distances, checkpoints and the report.
    steps = max(1, int((0.9 * 60 * minutes - sum(times)) / a_step))
    return plan.with_values({"train.steps": (steps, f"{minutes:g} minutes at {a_step:.3g} s a step, measured")})


def finish(loop: Loop) -> None:
    """Write the averaged generator and the report, and say how it ended."""
    weights = loop.folder.path / WEIGHTS
    with writing(weights):
        save_file({name: x.contiguous() for name, x in loop.trainer.average.state_dict().items()}, weights)
    written = page.write(loop.folder)
    if loop.reason:
        print(f"ended early because {loop.reason}; continue with: --out {loop.folder.path} --resume")
    verdict = loop.health.verdict(loop.spread)
    print(f"health: {verdict.word}. {' '.join(verdict.sentences)}")
    print(f"model:  {weights}")
    print(f"report: {written}", flush=True)


def finished(run: Path, device: str) -> Generator:
    """The averaged generator of a finished run.

    Raises:
        UserError: when the folder is no run of this kind, or is not finished.
    """
    folder = GeneratorFolder(run)
    if not folder.holds_a_run():
        raise UserError(f"{run}: is no run of `belvedere generate` (it has no {folder.config.name})")
    weights = run / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{run}: has no {WEIGHTS} yet; finish the run with --resume")
    generator = make_generator(from_yaml(folder.config).settings)
    try:
        generator.load_state_dict(load_file(weights))
    except Exception as error:  # damaged files raise many kinds
        raise UserError(f"{weights}: is damaged or does not fit {folder.config.name}") from error
    return generator.to(device)


def sample(run: Path, out: Path, count: int, seed: int, device: str) -> None:
    """Write `count` images of a finished run as PNG files; image i of a seed is the same whatever their number.

    Raises:
        UserError: when the folder is no run of this kind, is not finished, or `out` holds files already.
    """
    generator = finished(run, device)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: holds files already; choose an empty or a new folder")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, 64):
        some = min(64, count - first)
        pictures.write_each(paint(generator, latents(seed, 0, some, generator.dim, "sample", first)), out, first)


def compare(run: Path, source: Source, by: Encoder | Path, number: int, seed: int, device: str) -> Judged:
    """Distances of a finished run's images to real ones; see `fidelity.judge`.

    Raises:
        UserError: as `finished` and `judge` do, or for an encoder of other channels than the images.
    """
    generator = finished(run, device)
    images = from_yaml(GeneratorFolder(run).config).settings.images
    if isinstance(by, Encoder) and by.channels != images.channels:
        raise UserError(f"--encoder: sees {by.channels} channels, the run makes {images.channels}")
    canvases = open_canvases(source, int(images.size), channels=images.channels)
    return judge(generator, int(images.size), canvases, by, number, seed, device)
