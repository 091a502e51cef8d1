"""What a user calls: composes the parts; the same names as the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from belvedere import config as configuration
from belvedere import plugins
from belvedere.assess import compare, evaluate
from belvedere.atomic import write_text
from belvedere.backbones.export import save_backbone
from belvedere.config import Config, Resolved
from belvedere.derive import IMAGENET
from belvedere.distributed import leads, part, world_size
from belvedere.embedding import check_file, embed_parts, write_file
from belvedere.errors import UserError
from belvedere.exporting import export
from belvedere.generate import loop as generation
from belvedere.generate.fidelity import Judged
from belvedere.generate.settings import plan
from belvedere.images.check import Check
from belvedere.images.check import check as check_source
from belvedere.images.source import Source, find_images
from belvedere.launch import is_process
from belvedere.measure.features import extract
from belvedere.measure.readings import Reading
from belvedere.opened import canvases_for, configuration_of, load, statistics_of
from belvedere.policies import Policy
from belvedere.predicting import predict
from belvedere.pretrain.compose import device_of, facts_of, make_encoder, settle, with_plugins
from belvedere.pretrain.engine import meet, quiet_engine
from belvedere.pretrain.folder import RunFolder
from belvedere.pretrain.initial import note_changes, require_weights, start_from
from belvedere.pretrain.loop import Loop
from belvedere.pretrain.memory import enough_for
from belvedere.pretrain.profile import Profile, measure
from belvedere.pretrain.restore import restore
from belvedere.pretrain.start import SAMPLED, cut_up, open_images, picture, prepare, resumed, share_of, writing
from belvedere.report import analysis
from belvedere.report.page import write_page, write_report
from belvedere.report.pictures import draw_pictures
from belvedere.report.record import read_record
from belvedere.report.selection import as_hard
from belvedere.report.tasks import ask_tasks
from belvedere.views.draws import permutation

__all__ = [
    "analyze",
    "check",
    "compare",
    "draw_views",
    "embed",
    "embed_parts",
    "evaluate",
    "export",
    "fidelity",
    "generate",
    "load",
    "predict",
    "pretrain",
    "profile",
    "report",
    "sample",
    "show_recipe",
]

_SHORT = {
    "epochs": "train.epochs",
    "minutes": "train.minutes",
    "objective": "objective.name",
    "views": "views.policy",
    "backbone": "backbone.name",
    "init": "backbone.weights",
}


def pretrain(
    data: Any,
    recipe: str | Path | None = None,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    plugin: Sequence[str | Path] = (),
    settings: dict[str, Any] | None = None,
    **short: Any,
) -> Path:
    """Pretrain on images; returns the run's folder.

    Args:
        data: a folder, text list, glob, `.npy` or `.npz` file, NumPy array [N,H,W,C], or a map-style torch dataset.
        recipe: a recipe's name or a YAML file; None is `simclr`, and on resuming the run's own.
        out: the run's folder; by default runs/<data>-<recipe>.
        resume: continue the run in `out` where it stopped.
        plugin: Python files of your own.
        settings: flat keys as on the command line, {"train.batch": 256}.
        short: `epochs=`, `minutes=`, `objective=`, `views=` (a policy's name, or one of `belvedere.policies`),
            `backbone=`, and `init=`: weights to start from, "timm:NAME", a run's folder or an official DINO, iBOT or
            MoCo v3 `.pth` file.

    Raises:
        UserError: for anything a user can mend.
    """
    for file in plugin:
        plugins.add_file(file)
    unknown = [word for word in short if word not in _SHORT]
    if unknown:
        raise UserError(f"pretrain({unknown[0]}=...): {plugins.nearest(unknown[0], list(_SHORT))}")
    if isinstance(short.get("init"), Path):
        short["init"] = str(short["init"])
    views = short.pop("views").settings() if isinstance(short.get("views"), Policy) else {}
    given = {**{_SHORT[word]: value for word, value in short.items()}, **views, **(settings or {})}
    named = None if recipe is None else str(recipe)
    resolved = configuration.resolve(named, given)
    folder = None if out is None else Path(out)
    return pretrain_resolved(data, resolved, given, out=folder, device=device, resume=resume, named=named)


def pretrain_resolved(
    data: Any,
    resolved: Resolved,
    given: dict[str, Any],
    *,
    out: Path | None,
    device: str,
    resume: bool,
    named: str | None,
) -> Path:
    """`pretrain` for a resolved configuration; `given` are the flat keys and `named` the recipe that the user gave."""
    if resume and out is None:
        raise UserError("--resume: say which run with --out RUN")
    device = device_of(device)
    folder = RunFolder(out if out is not None else _free_folder(data, resolved.config))
    folder.check(resume)
    continues = resume and folder.holds_a_run()
    if continues:
        resolved = resumed(folder, named, given)
    require_weights(resolved)
    resolved = with_plugins(resolved)  # what is wrong whatever the images are is said before they are decoded
    weights = None
    if not (continues and folder.checkpoint.exists()):  # a checkpoint holds all weights, the file may be gone
        resolved, weights = start_from(resolved)
    source = find_images(data, labels=resolved.config.images.labels)
    canvases, resolved = open_images(source, resolved, device)
    try:
        with quiet_engine(), torch.random.fork_rng(devices=[]):
            loop = prepare(canvases, resolved, folder, device, continues, weights)
            loop.run()
        # Pictures and evaluation are made by one process, and must not wait for the others.
        part()
        if loop.trainer.fabric.is_global_zero:
            advice = f"nothing is lost, write it where more is free: --out {folder.path} --resume"
            with enough_for(f"{folder.path}: the report", advice):
                _finish(loop)
    finally:
        folder.close()
    return folder.path


def _free_folder(data: Any, config: Config) -> Path:
    """runs/<data>-<recipe>, with the first free number where there is one already."""
    name = Path(data).stem if isinstance(data, str | Path) else "images"
    stem = re.sub(r"\*+|\{.*?\}", "all", f"{name or 'images'}-{Path(config.recipe).stem}")
    taken = 1
    folder = Path("runs") / stem
    while folder.exists():
        taken += 1
        folder = Path("runs") / f"{stem}-{taken}"
    return folder


def _finish(loop: Loop) -> None:
    """Write the model and the report, and say how it ended."""
    folder, config = loop.folder, loop.config
    mean, std = statistics_of(config)
    if loop.trainer.sharded:  # a process on its own has parts of the networks, the last checkpoint has them whole
        with quiet_engine(), torch.random.fork_rng(devices=[]):
            loop.trainer = restore(folder, loop.resolved, loop.feed.canvases, loop.trainer.fabric.device.type).trainer
    # Before the best look's weights take the place of the last ones, which the tasks' heads belong to.
    shown = ask_tasks(loop.trainer, loop.feed.canvases)
    backbone = loop.take_best()
    with writing(folder.path / "model.safetensors"):
        save_backbone(backbone, folder.path, mean=mean, std=std)
    policy = loop.trainer.parts.policy.exported()
    if policy is not None:
        write_text(folder.policy, json.dumps(policy, indent=2) + "\n")
    device = str(loop.trainer.fabric.device)
    encoder = load(folder.path)
    draw_pictures(folder.path, encoder, loop.feed.canvases, device, config.train.seed, shown)
    page = report(folder.path)
    if loop.reason:
        print(f"ended early because {loop.reason}; nothing is lost, continue with: --out {folder.path} --resume")
    if loop.guard is not None and loop.guard.best is not None:
        best = loop.guard.best
        print(f"best:   k-NN {best['knn']:.1f} % after {best['step']} steps; these weights are the model")
    verdict = loop.monitor.verdict()
    print(f"health: {verdict.word}. {' '.join(filter(None, [*verdict.sentences, folder.told_not_finite()]))}")
    print(f"model:  {folder.path / 'model.safetensors'}")
    print(f"report: {page}", flush=True)


def check(data: Any, labels: str = "auto", tile: int = 0) -> Check:
    """Look at a data set before training: counts, sizes, formats, duplicates, unreadable files, labels.

    Args:
        tile: cut larger images into tiles of so many pixels first, as `images.tile` does; 0 = whole images.
    """
    return check_source(data, labels=labels, tile=tile)


def embed(
    run: str | Path, data: Any, *, out: str | Path | None = None, reading: Reading = "auto", device: str = "auto"
) -> NDArray[np.float32]:
    """One feature vector an image, or a tile where the run cuts images into tiles; [N,D] float32.

    For more than memory holds there is `embed_parts`.

    Processes that torchrun started share the work, and each returns all vectors; the first one writes.

    Args:
        out: `.npz` (features, names, labels, classes, skipped), `.parquet` or `.csv` (a row an image) to write.
        reading: which vector of an image, see `measure/readings.py`; auto takes the class token where there is one.

    Raises:
        UserError: for unusable images, a reading that the network has not, or an ending that is not known.
    """
    if out is not None:
        check_file(Path(out))
    device = device_of(device)
    meet(device)
    encoder = load(run, reading, device)
    canvases = canvases_for([encoder], data, cutting=configuration_of(Path(run)).config.images.cutting)
    features = extract(encoder, canvases, device=device, together=world_size() > 1).numpy()
    part()
    if out is not None and leads():
        write_file(Path(out), features, canvases)
        told = f"{len(features)} vectors of {features.shape[1]} numbers: {out}"
        print(f"{told} ({len(canvases.skipped)} images set aside)", flush=True)
    return features


def report(run: str | Path) -> Path:
    """Write a run's report.html anew and return its path."""
    return write_report(Path(run))


def analyze(
    run: str | Path,
    other: str | Path | None = None,
    *,
    data: Any = None,
    images: int = 256,
    out: str | Path | None = None,
    device: str = "auto",
    plugin: Sequence[str | Path] = (),
) -> Path:
    """Write a page on the views that a run chose, learned, or would choose now; returns its path.

    Args:
        other: a second run, whose accuracy over time and attention on the same images are drawn beside the first's.
        data: images to look at; by default those that the run was trained on.
        images: how many of them.
        out: the page; by default analysis.html in the run's folder.
        plugin: Python files of your own that the run was trained with.

    Raises:
        UserError: when the run has no checkpoint, its objective has no pairs of views, or its images are gone.
    """
    for file in plugin:
        plugins.add_file(file)
    folder, page = RunFolder(Path(run)), Path(run) / "analysis.html" if out is None else Path(out)
    resolved = configuration_of(folder.path)
    plugins.check_files()
    objective = resolved.config.objective.name
    if not plugins.load("objective", objective).has_pairs:
        raise UserError(
            f"{run}: objective {objective} has no pairs of views to choose between, so nothing to analyze; "
            "`belvedere report` shows what a policy learned"
        )
    resolved, candidates = as_hard(resolved)
    device = device_of(device)
    canvases, resolved = open_images(_images_of(run, resolved, data), resolved, device)
    runs = _named(Path(run), *([] if other is None else [Path(other)]))
    encoders = [] if other is None else [(name, load(one)) for name, one in runs]
    with quiet_engine(), torch.random.fork_rng(devices=[]), TemporaryDirectory(prefix="belvedere-") as place:
        restored = restore(folder, resolved, canvases, device)
        index = permutation(resolved.config.train.seed, 0, len(canvases), "analysis")[:images]
        found = analysis.find(restored.trainer, canvases, index, candidates)
        encoder = make_encoder(resolved.config, restored.trainer.evaluated.backbone)
        pictures = analysis.draw(Path(place), restored.trainer, encoder, canvases, found)
        if encoders:
            pictures.append(analysis.compare(Path(place), encoders, canvases, index, device))
        whose = "the run's own" if restored.the_runs_own else "not the run's own"
        told = f"{len(index)} of {len(canvases)} images, {whose}; weights after {restored.step} steps."
        records = [(name, read_record(one)) for name, one in runs]
        html = analysis.render(records[0][1], found, Path(place), pictures, told, records)
    with writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        write_page(page, html)
    return page


def _named(*runs: Path) -> list[tuple[str, Path]]:
    """Runs by the names of their folders, or by their paths where two folders have the same name."""
    names = [run.resolve().name for run in runs]
    return list(zip(names if len(set(names)) == len(runs) else map(str, runs), runs, strict=True))


def _images_of(run: str | Path, resolved: Resolved, data: Any) -> Source:
    """The images to analyze: those given, or the run's own.

    Raises:
        UserError: when the run's own are not where they were.
    """
    if data is not None:
        return find_images(data, labels="none")
    if not resolved.config.data:
        raise UserError(f"{run}: does not know its images; say where they are with --data")
    try:
        return find_images(resolved.config.data, labels="none")
    except UserError as error:
        raise UserError(f"{run}: its images cannot be read ({error}); say where they are with --data") from error


def generate(
    data: Any,
    *,
    out: str | Path,
    settings: dict[str, Any] | None = None,
    device: str = "auto",
    resume: bool = False,
) -> Path:
    """Learn to make images like these (ViTGAN); returns the run's folder.

    Args:
        data: as of `pretrain`.
        out: the run's folder.
        settings: flat keys as on the command line, {"train.batch": 32}; all are listed in the run's generator.yaml.
        resume: continue the run in `out` where it stopped.

    Raises:
        UserError: for anything a user can mend.
    """
    given = settings or {}
    found = plan(given)
    device = device_of(device)
    if is_process():
        raise UserError("generate: runs in one process; start it without torchrun")
    folder = generation.GeneratorFolder(Path(out))
    folder.check(resume)
    if resume and folder.holds_a_run():
        found = generation.resumed(folder, given)
    try:
        loop = generation.prepare(find_images(data, labels="none"), found, folder, device)
        loop.run()
        generation.finish(loop)
    finally:
        folder.close()
    return folder.path


def sample(run: str | Path, *, out: str | Path, number: int = 64, seed: int = 0, device: str = "auto") -> Path:
    """Write images that a run of `generate` makes as PNG files into a new folder, and return it.

    Args:
        number: how many; image i of a seed is the same whatever their number.

    Raises:
        UserError: when the run is not finished, or `out` holds files already.
    """
    generation.sample(Path(run), Path(out), number, seed, device_of(device))
    return Path(out)


def fidelity(
    run: str | Path,
    data: Any,
    *,
    encoder: str | Path | None = None,
    inception: str | Path | None = None,
    number: int = 10_000,
    seed: int = 0,
    device: str = "auto",
) -> Judged:
    """FID and KID between images that a run of `generate` makes and real ones, by torch-fidelity.

    Args:
        data: real images, as of `pretrain`; those that it was trained on, as papers do, or others.
        encoder: a run in whose features they are compared.
        inception: or a file with the weights of Inception that papers use.
        number: of images made, and of real ones where there are so many.

    Returns:
        `fid`, `kid`, `kid_std`, `inception_score`, `floor` (FID of real images to others), `generated`, `real`.

    Raises:
        UserError: when the run is not finished, neither or both of the features are given, or something is missing.
    """
    if (encoder is None) == (inception is None):
        raise UserError("fidelity: give either --encoder RUN or --inception FILE")
    by = Path(inception) if inception is not None else load(Path(str(encoder)))
    return generation.compare(Path(run), find_images(data, labels="none"), by, number, seed, device_of(device))


def draw_views(data: Any, resolved: Resolved, *, out: Path, images: int = 4) -> Path:
    """Draw what a configuration shows the network on some of these images.

    Of more than `SAMPLED` images that are not in the cache yet, so many are decoded, evenly spaced; what is derived
    from the number of images is that of all.
    """
    device = device_of("auto")
    source = cut_up(find_images(data, labels=resolved.config.images.labels), resolved)
    canvases, resolved = open_images(source, start_from(resolved)[0], device, SAMPLED)
    facts = facts_of(canvases, device)
    settled, _ = settle(resolved, replace(facts, images=round(facts.images / share_of(canvases, source))))
    with writing(out):
        picture(settled.config, canvases, out, images)
    print(out)
    return out


def profile(data: Any, resolved: Resolved, *, device: str = "auto", seconds: float = 15.0) -> Profile:
    """Measure where the time of a run with this configuration would go; leaves nothing but the images' cache.

    Of more than `SAMPLED` images that are not in the cache yet, so many are decoded, evenly spaced.

    Args:
        seconds: of training to measure.

    Raises:
        UserError: for unusable images, settings that do not fit them, or a batch that memory does not hold.
    """
    device = device_of(device)
    source = find_images(data, labels=resolved.config.images.labels)
    resolved, weights = start_from(resolved)
    batch = resolved.config.train.batch
    most = max(SAMPLED, 0 if batch == "auto" else batch)
    canvases, resolved = open_images(source, resolved, device, most)
    with quiet_engine(), torch.random.fork_rng(devices=[]):
        return measure(source, canvases, resolved, device, weights, seconds)


def show_recipe(resolved: Resolved, data: Any = None, *, device: str = "auto") -> str:
    """The resolved configuration with the origin of every value; without data, for full ImageNet on CUDA."""
    resolved, weights = start_from(resolved)
    if data is None:
        facts = IMAGENET
    else:
        source = find_images(data, labels=resolved.config.images.labels)
        canvases, resolved = open_images(source, resolved, device_of(device))
        facts = facts_of(canvases, device_of(device))
    settled, _ = settle(resolved, facts)
    settled = settled if weights is None else note_changes(settled, weights)
    why = "known when a run has measured how many steps fit the minutes"
    return configuration.to_yaml(settled.with_values(dict.fromkeys(settled.auto_keys(), ("auto", why))))
