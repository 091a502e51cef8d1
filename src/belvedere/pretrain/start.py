"""Before step 0: open the images, settle every value, measure how many steps fit the budget, take the folder."""

from __future__ import annotations

import errno
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError

from belvedere import config as configuration
from belvedere.atomic import write_text
from belvedere.backbones.weights import Weights
from belvedere.config import Config, Resolved
from belvedere.derive import Facts, derive
from belvedere.distributed import gather_blocks
from belvedere.errors import UserError
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import Source
from belvedere.images.survey import sample_sides
from belvedere.images.tiles import cut
from belvedere.measure.bands import rules_for
from belvedere.measure.monitor import HealthMonitor
from belvedere.pretrain.compose import (
    facts_of,
    make_feed,
    make_policy,
    make_trainer,
    pair,
    settle,
    slots_of,
    view_settings,
    with_steps,
)
from belvedere.pretrain.engine import make_fabric
from belvedere.pretrain.folder import BEFORE_THE_RUN, RunFolder
from belvedere.pretrain.guard import Guard
from belvedere.pretrain.initial import note_changes
from belvedere.pretrain.loop import Loop, steps_in
from belvedere.pretrain.sharding import note_on_shards
from belvedere.pretrain.watch import Watch
from belvedere.views.picture import draw_views
from belvedere.views.program import OperationProgram
from belvedere.views.render import render_views
from belvedere.views.slots import colour_note

# What may change when a run is resumed; anything else would make it another run.
MAY_CHANGE = (
    "train.epochs",
    "train.steps",
    "train.checkpoint_minutes",
    "train.recompute",
    "train.shard",
    "health.stop",
    "health.stop_below_start",
    "images.workers",
)
# Images that are decoded where none are yet and not all are needed: a large set would take far longer than the rest.
SAMPLED = 5000
# The settings that a user is shown before step 0, beside the objective's derived ones.
SHOWN = ("views.size", "backbone.name", "backbone.patch", "train.batch", "train.steps", "train.lr", "train.warmup")


def open_images(source: Source, resolved: Resolved, device: str, most: int | None = None) -> tuple[Canvases, Resolved]:
    """Cut and decode as the settings say; where the canvas size is `auto`, the images' size decides it.

    Args:
        most: of many images that are not decoded yet, only so many.

    Raises:
        UserError: when there are too few usable images.
    """
    source = cut_up(source, resolved)
    if resolved.config.images.canvas == "auto":
        facts = Facts(len(source), sample_sides(source), cpu=device == "cpu")
        guess, _ = derive(resolved, facts)
        resolved = resolved.with_values({"images.canvas": (guess.config.images.canvas, guess.origin["images.canvas"])})
    resolved = resolved.with_values({"data": (source.described, "the run's images")})
    images = resolved.config.images
    canvases = open_canvases(
        source,
        int(images.canvas),
        channels=images.channels,
        workers=workers_of(resolved),
        min_side=images.min_side,
        most=most,
    )
    return canvases, resolved


def cut_up(source: Source, resolved: Resolved) -> Source:
    """A source in the tiles that the settings ask for; as it is where it has been cut before."""
    return cut(source, resolved.config.images.cutting, workers_of(resolved))


def workers_of(resolved: Resolved) -> int | None:
    """Threads, or processes, that read and decode; None: one a core."""
    workers = resolved.config.images.workers
    return None if workers in ("auto", 0) else int(workers)


def share_of(canvases: Canvases, source: Source) -> float:
    """Above 0, at most 1: how much of a source that was cut canvases are of, images that are set aside included."""
    return (len(canvases) + len(canvases.skipped) - len(source.skipped)) / len(source)


def resumed(folder: RunFolder, recipe: str | None, given: dict[str, Any]) -> Resolved:
    """The stored configuration of a run, with what the user asks to change: a longer budget re-plans the schedules.

    Raises:
        UserError: when something else than the budget or the monitoring is to change.
    """
    stored = configuration.from_yaml(folder.config)
    flat = configuration.flatten(stored.config)
    if recipe not in (None, stored.config.recipe):
        raise UserError(f"--resume: {folder.path} is a run of recipe {stored.config.recipe}, not of {recipe}")
    wanted = {key: value for key, value in given.items() if flat.get(key) != value}
    for key, value in wanted.items():
        if key not in MAY_CHANGE:
            raise UserError(
                f"--resume: {key} is {flat.get(key)} in this run and cannot become {value}; start a new run with --out"
            )
    changed = {key: (value, "command line, on resuming") for key, value in wanted.items()}
    if "train.epochs" in wanted:
        changed["train.steps"] = ("auto", "")
        changed["train.minutes"] = (None, "replaced by epochs on resuming")
    elif "train.steps" in wanted:
        changed |= dict.fromkeys(("train.epochs", "train.minutes"), (None, "replaced by steps on resuming"))
    return stored.with_values(changed)


def prepare(
    canvases: Canvases,
    resolved: Resolved,
    folder: RunFolder,
    device: str,
    continues: bool,
    weights: Weights | None = None,
) -> Loop:
    """Everything settled and built, the folder taken, and a resumed run put back to where it was.

    Args:
        weights: to start from; None where there are none, or a checkpoint holds them.

    Raises:
        UserError: for settings that do not fit the images, and all that building and resuming can refuse.
    """
    resolved, facts = settle(resolved, facts_of(canvases, device))
    if not continues:  # then the images were others, which says more
        check_fit(resolved.config, canvases)
    if resolved.config.train.threads:
        torch.set_num_threads(int(resolved.config.train.threads))
    fabric = make_fabric(device, str(resolved.config.train.precision))
    _check_processes(resolved.config, fabric.world_size)
    goes_on = continues and folder.checkpoint.exists()
    _check_same(fabric, {"DATA": zlib.crc32(canvases.fingerprint.encode()), "--out": int(goes_on)})
    if resolved.config.train.steps == "auto":
        trial = trial_of(resolved, facts)
        trainer, feed = make_trainer(trial.config, canvases, fabric), make_feed(trial.config, canvases, fabric)
        watch = Watch.of(trial.config, slots_of(trial.config), canvases)
        measured = steps_in(float(trial.config.train.minutes or 0), trainer, feed, watch)
        resolved = resolved.with_values({"train.steps": fabric.broadcast(measured)})
        resolved, facts = settle(resolved, facts)
    if weights is not None:
        resolved = note_changes(resolved, weights)
    trainer = make_trainer(resolved.config, canvases, fabric, weights)
    feed = make_feed(resolved.config, canvases, fabric)
    objective = trainer.parts.objective
    chance, rules = objective.chance_loss(feed.batch), rules_for(objective.has_loss)
    monitor = HealthMonitor(int(resolved.config.train.steps), feed.steps_per_epoch, chance, rules)
    watch = Watch.of(resolved.config, slots_of(resolved.config), canvases)
    guarded = resolved.config.health.stop_below_start and watch.gallery is not None
    guard = Guard(len(watch.gallery)) if guarded and watch.gallery is not None else None
    loop = Loop(trainer, feed, watch, folder, monitor, resolved, guard)
    if fabric.is_global_zero:
        folder.open()
    fabric.barrier()
    if goes_on:
        loop.resume()
        total = int(resolved.config.train.steps)
        if loop.start > total:
            raise UserError(f"--resume: {folder.path} is at step {loop.start} already, the budget ends at step {total}")
    _check_same(fabric, {"--out": loop.start})
    if fabric.is_global_zero:
        if not goes_on:
            for log in (folder.metrics, folder.not_finite):  # of a run that died before its first checkpoint
                log.unlink(missing_ok=True)
        _begin(loop, canvases, continues)
        if resolved.config.train.shard and (note := note_on_shards(fabric.device)):
            print(note, flush=True)
    return loop


def trial_of(resolved: Resolved, facts: Facts) -> Resolved:
    """A settled configuration whose steps are not known yet, as a run of 1,000 steps, to measure what a step takes."""
    return settle(resolved, with_steps(facts, 1000))[0].with_values({"train.steps": (1000, "trial")})


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around code that writes `path`.

    Raises:
        UserError: when the disk is full or the place cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error).splitlines()[0]
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            why = "the disk is full"
        raise UserError(f"{path}: cannot be written ({why})") from error


def _check_processes(config: Config, world: int) -> None:
    """Refuse a batch of which some process would get no image: the last one of an epoch may be half as large."""
    batch = int(config.train.batch)
    if world > 1 and batch < 2 * world:
        raise UserError(f"train.batch={batch}: too small for {world} processes; make it at least {2 * world}")


def _check_same(fabric: Fabric, numbers: Mapping[str, int]) -> None:
    """Refuse processes for which what they should share is not the same: machines with file systems of their own.

    Args:
        numbers: what is shared, as the user gave it, and this process' number of what it holds.

    Raises:
        UserError: on every process.
    """
    own = torch.tensor(list(numbers.values()), device=fabric.device)
    for name, everyones in zip(numbers, torch.stack(gather_blocks(own)).unbind(1), strict=True):
        if (everyones != everyones[0]).any():
            raise UserError(f"{name} is not the same for all processes: give one that all machines see and share")


def check_fit(config: Config, canvases: Canvases) -> None:
    """Refuse a batch larger than the data and views that could only enlarge the images.

    Raises:
        UserError: naming the setting.
    """
    batch = int(config.train.batch)
    if batch > len(canvases):
        raise UserError(f"train.batch={batch}: larger than the {len(canvases)} images; make it smaller")
    for name, size in (("views.size", config.views.size), ("views.local_size", config.views.local_size)):
        height, width = pair(size)
        largest_h, largest_w = canvases.sizes.max(0).tolist()
        if height > 2 * largest_h or width > 2 * largest_w:
            raise UserError(
                f"{name}={size}: more than twice the largest canvas ({largest_w} x {largest_h} px); "
                f"make {name} smaller, or images.canvas larger if the files are"
            )


def _begin(loop: Loop, canvases: Canvases, continues: bool) -> None:
    """Write what stands before training - configuration, skipped files, picture of the views - and say it."""
    folder = loop.folder
    if continues:
        total, before = loop.config.train.steps, configuration.from_yaml(folder.config).config.train.steps
        again = "" if before == total else f" instead of {before}; the schedules are planned anew"
        _write_config(loop)
        print(f"{folder.path}: continues at step {loop.start} of {total}{again}", flush=True)
        return
    try:
        with writing(folder.path):
            skipped, views = (folder.path / name for name in BEFORE_THE_RUN)
            canvases.write_skipped(skipped)
            picture(loop.config, canvases, views)
        _write_config(loop)  # last, since it is what makes the folder a run's
    except BaseException:
        folder.leave()
        raise
    _tell(loop, canvases)


def _write_config(loop: Loop) -> None:
    text = configuration.to_yaml(loop.resolved)
    write_text(loop.folder.config, text)


def _tell(loop: Loop, canvases: Canvases) -> None:
    """What was found and what was decided, ten lines or so, with what each came from."""
    resolved = loop.resolved
    what = f"tiles of {canvases.cutting.tile} px" if canvases.cutting.tile else "images"
    print(f"{len(canvases)} {what} ({len(canvases.skipped)} set aside), labels: {canvases.label_origin}")
    flat = configuration.flatten(resolved.config)
    derived = [key for key in flat if key.startswith("objective.") and _is_derived(resolved.origin[key])]
    starting = ["backbone.weights", "images.mean"] if resolved.config.backbone.weights else []
    shown = {key: str(flat[key]) for key in [*starting, *SHOWN, *derived]}
    wide = max(len(value) for value in shown.values())
    for key, value in shown.items():
        print(f"  {key:30} {value:{wide}}  {resolved.origin[key]}")
    if resolved.config.health.stop_below_start and loop.guard is None:
        print("no labels for a k-NN: health.stop_below_start is off, and the last weights will be the model")
    note = colour_note(view_settings(resolved.config), canvases.channels)
    if note:
        print(note)
    print(f"run folder: {loop.folder.path}", flush=True)


def _is_derived(origin: str) -> bool:
    return origin not in ("default", "command line") and not origin.startswith("recipe ")


def picture(config: Config, canvases: Canvases, path: Path, count: int = 4) -> None:
    """Draw some images, their crop boxes and the views that the policy proposes before the first step.

    Of a policy that chooses among candidates, all candidates are shown.
    """
    index = np.linspace(0, len(canvases) - 1, min(count, len(canvases))).astype(np.int64)
    images = canvases.batch(index)
    mean, std = config.images.mean, config.images.std
    assert mean != "auto"
    assert std != "auto"
    policy = make_policy(config, canvases.channels)
    operations = policy.program.operations if isinstance(policy.program, OperationProgram) else ()
    with torch.no_grad():
        params = policy.propose(index, canvases.sizes[index], 0, config.train.seed)
        views = render_views(images, params, mean=mean, std=std, program=policy.program)
    names = [canvases.names[i] for i in index]
    draw_views(list(images), views, mean=mean, std=std, operations=operations, names=names, path=path)
