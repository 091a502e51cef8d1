"""`belvedere evaluate` and `compare`: runs beside their floors, given weights and each other, on a user's images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.backbones.build import build_backbone
from belvedere.backbones.weights import load_weights, read_weights
from belvedere.distributed import leads, part, world_size
from belvedere.errors import UserError
from belvedere.evaluate.compare import compare_runs
from belvedere.evaluate.contract import Result
from belvedere.evaluate.records import join, put_aside, twins_told, write_results
from belvedere.evaluate.suite import FLOORS, Given, prepare, read_options, suitable
from belvedere.images.annotations import Annotations, annotated_rows, annotation_files, find_annotations
from belvedere.images.canvases import Canvases
from belvedere.images.cutting import Cutting
from belvedere.images.labels import own_split
from belvedere.images.masks import MaskOptions, Masks, find_masks, mask_folder, split_rows
from belvedere.measure.dense import ENLARGED
from belvedere.measure.encoder import Encoder
from belvedere.opened import canvases_for, configuration_of, load
from belvedere.pretrain.compose import device_of
from belvedere.pretrain.engine import meet
from belvedere.pretrain.start import writing
from belvedere.report import comparison
from belvedere.report.page import write_page
from belvedere.report.protocols import PICTURES, draw_results


def evaluate(
    run: str | Path,
    data: Any,
    *,
    test: Any = None,
    protocols: Sequence[str] | None = None,
    baselines: Sequence[str] = (),
    other: Any = None,
    labels: str = "auto",
    out: str | Path | None = None,
    device: str = "auto",
    floors: Sequence[str] = FLOORS,
    paper_protocol: bool = False,
    quick: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> list[Result]:
    """Measure a run's encoder on your images, beside raw pixels, the untrained network and given weights.

    Processes that torchrun started share the work on features; then the first one goes on alone, and the others return
    no results.

    Args:
        data: the images, labelled for most protocols; choices are made on a part of them. A folder with `images/` and
            `masks/` has the classes of pixels, with `annotations/instances.json` of COCO's form objects. A folder with
            train/ and test/ (or val/) brings its own `test`, and so does a CSV file with such a column `split`.
        test: held-out images of the same kind, read once; by default those that `data` brings, or a tenth of it.
        labels: "auto", "folder", "none" or a CSV file with the columns path, label and, if you like, group: what
            belongs together (a patient, a clip) is then never split. With masks path and group are enough.
        protocols: names, see `belvedere evaluate --list`; None takes those that fit the images.
        baselines: other encoders to go through the same protocols: "timm:NAME", a run's folder or an official `.pth`,
            "...@224" to read images at another size, "imagenet=..." to give it a name.
        other: images from elsewhere, for the protocols that compare.
        out: JSON file; by default evaluation.json in the run's folder, which the report shows. Where it already has
            results of the same images, split, encoders and seed, those of these protocols are replaced and the others
            stay; results of anything else are put aside as evaluation-1.json, ..., and it is said why.
        floors: which of "untrained" and "pixels" go through the same protocols; fewer are faster.
        paper_protocol: choose settings on the test images, as most papers do; the results say so.
        quick: all protocols that cost few labels and little time, on at most 2,000 training and 1,000 test images.
        settings: options of protocols, {"knn.temperature": 0.1}, and of masks, {"masks.reduce_zero_label": True}.

    Raises:
        UserError: when the images lack what a protocol needs, when the results cannot be written, and after they are,
            when a protocol failed.
    """
    path = Path(run) / "evaluation.json" if out is None else Path(out)
    if out is not None:
        _check_out(path)
    device = device_of(device)
    meet(device)
    encoder = load(run, device=device)
    others = {name: read_baseline(word, encoder) for name, word in map(_name_of, baselines)}
    readers = [encoder, *others.values()]
    options = _by_protocol(settings or {})
    mask_options = read_options("masks", MaskOptions, options.pop("masks", {}))
    config = configuration_of(Path(run)).config
    cutting = config.images.cutting
    train, held_out = _split(readers, data, test, labels, mask_options, cutting)
    other_labels = "none" if labels == "none" else "auto"
    given = Given(
        train=train.canvases,
        test=None if held_out is None else held_out.canvases,
        train_masks=train.masks,
        test_masks=None if held_out is None else held_out.masks,
        train_objects=train.objects,
        test_objects=None if held_out is None else held_out.objects,
        other=None if other is None else canvases_for(readers, other, other_labels, cutting=cutting),
        baselines=others,
        options=options,
        paper=paper_protocol,
        quick=quick,
        floors=floors,
        folder=Path(run),
        mirrored=config.views.flip > 0,
    )
    names = suitable(given) if protocols is None else list(protocols)
    prepared = prepare(encoder, given, names, device, _cache_of(Path(run), path))
    if world_size() > 1:
        prepared.fill_cache()
    part()
    if not leads():
        return []
    results = prepared.run()
    with writing(path):
        every, unlike = join(results, path)
        if unlike:
            print(f"the results of before are kept in {put_aside(path)}: {unlike}")
        write_results(every, path)
        before = {one.protocol for one in every} - {one.protocol for one in results if one.metrics}
        draw_results(path.with_suffix(""), results, prepared.data, before)
    config = configuration_of(Path(run)).config
    seen = _lies_in(data if test is None else test, config.data)
    _tell(results, config.learns_labels, seen, paper_protocol, path)
    failed = [f"{result.protocol} ({result.settings['error']})" for result in results if "error" in result.settings]
    if failed:
        raise UserError(f"failed: {', '.join(failed)}")
    return results


def _check_out(path: Path) -> None:
    """Refuse a file whose pictures would come among files of the user, with whom they would later be put aside."""
    folder = path.with_suffix("")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PICTURES).is_file():
        raise UserError(f"--out {path}: its pictures go into {folder}, which holds other files; give another name")


def _cache_of(run: Path, out: Path) -> Path | None:
    """Where features are kept: in the run's folder; None, with a line, where that cannot be written and `out` can."""
    if os.access(run, os.W_OK):
        return run / "features"
    if out.absolute().parent == run.absolute():
        raise UserError(f"{run}: cannot be written; name a file elsewhere with --out")
    if leads():
        print(f"{run} cannot be written, so features are not kept there")
    return None


def _lies_in(images: Any, where: str) -> bool:
    """Whether images on disk are those of a folder or file, or a part of them, as far as their paths tell."""
    if not where or not isinstance(images, str | Path):
        return False
    place, own = (Path(path).expanduser().resolve() for path in (images, where))
    return own == place or own in place.parents


def _tell(results: Sequence[Result], learned_labels: bool, seen: bool, paper_protocol: bool, path: Path) -> None:
    """Print the numbers, and what has to be known to read them."""
    print(f"percent [95 % interval]; {results[0].settings['split']}")
    if learned_labels:
        print("this run learned from labels: numbers on images that it was trained on say little of others (--test)")
    elif seen:
        print("this run saw the test images in pretraining, without their labels; on new ones (--test) it may do worse")
    if paper_protocol and any(result.chosen for result in results):
        print("settings were selected on the test images, as in papers: the numbers flatter")
    if sentence := twins_told(results[0].settings):
        print(sentence)
    for result in results:
        for line in result.lines():
            print(line)
    print(f"written: {path}", flush=True)


def _name_of(baseline: str) -> tuple[str, str]:
    """("imagenet", "timm:vit_small") of "imagenet=timm:vit_small"; without a name a run is called by its folder."""
    name, given, word = baseline.partition("=")
    if given and name.isidentifier():
        return name, word
    return Path(baseline).name if Path(baseline).is_dir() else baseline, baseline


def compare(*runs: str | Path, out: str | Path = "compare.html") -> Path:
    """Write one page on two or more runs that were evaluated on the same images; each is compared with the first.

    Args:
        runs: folders of runs with an evaluation.json, or such files.
        out: the page.

    Returns:
        The path of the page.

    Raises:
        UserError: when a run was not evaluated, or on other images than the first.
    """
    found = compare_runs([Path(run) for run in runs])
    page = Path(out)
    with writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        write_page(page, comparison.render(found))
    for sentence in (*comparison.verdicts(found), *found.notices):
        print(sentence)
    return page


def read_baseline(word: str, like: Encoder) -> Encoder:
    """The encoder of `timm:NAME`, an official `.pth` or a run's folder, for images of `like`'s channels.

    It reads images in the size that its position table was made for, one without a table in that of `like`; "WORD@SIZE"
    names another.

    Raises:
        UserError: when there are no such weights, or they do not match.
    """
    name, _, side = word.partition("@")
    if side and not side.isdecimal():
        raise UserError(f"--baseline {word}: what stands after @ is a size in pixels")
    if Path(name).is_dir():
        found = load(name)
        return found if not side else Encoder(found.backbone, (int(side),) * 2, found.mean, found.std, found.reading)
    try:
        weights = read_weights(name)
    except UserError as error:
        raise UserError(str(error).replace("--init", "--baseline", 1)) from error
    shape = dict(weights.shape)
    patch = int(shape.get("patch") or 1)
    size = (int(side), int(side)) if side else like.size
    if not side and weights.grid is not None:
        size = weights.grid[0] * patch, weights.grid[1] * patch
    backbone = build_backbone(shape.pop("name"), size=size, channels=like.channels, **shape)
    load_weights(weights, backbone)
    mean, std = weights.mean, weights.std
    if len(mean) != like.channels:
        mean, std = ((sum(numbers) / len(numbers),) * like.channels for numbers in (mean, std))
    return Encoder(backbone, size, mean, std).eval()


@dataclass(frozen=True)
class _Opened:
    """Images, with the masks and the objects that lie beside them."""

    canvases: Canvases
    masks: Masks | None = None
    objects: Annotations | None = None

    def rows(self, rows: NDArray[np.int64]) -> _Opened:
        masks = None if self.masks is None else self.masks.subset(rows)
        objects = None if self.objects is None else self.objects.subset(rows)
        return _Opened(self.canvases.subset(rows), masks, objects)


def _split(
    readers: Sequence[Encoder], data: Any, test: Any, labels: str, mask_options: MaskOptions, cutting: Cutting
) -> tuple[_Opened, _Opened | None]:
    """Training and test images; train/ and test/ (or val/) of a folder are its own."""
    train = _open(readers, data, labels, mask_options, cutting)
    if test is not None:
        return train, _open(readers, test, labels, mask_options, cutting)
    dense = train.masks is not None or train.objects is not None
    rows = split_rows(train.canvases.names) if dense else own_split(train.canvases.splits or [])
    return (train, None) if rows is None else (train.rows(rows[0]), train.rows(rows[1]))


def _open(readers: Sequence[Encoder], data: Any, labels: str, options: MaskOptions, cutting: Cutting) -> _Opened:
    """Images, and what lies beside them; those with masks or objects are opened as large as dense protocols read them.

    Such images are read whole, and their folders name splits, not classes; a CSV file may name what belongs together,
    such as a clip.
    """
    root = Path(data).expanduser() if isinstance(data, str | Path) else None
    masked = root is not None and mask_folder(root) is not None
    annotated = root is not None and bool(annotation_files(root))
    if root is None or not (masked or annotated):
        return _Opened(canvases_for(readers, data, labels, cutting=cutting))
    what = "masks" if masked else "objects"
    if cutting.binarize != "none":
        raise UserError(f"the run binarizes pages (images.binarize), which images with {what} are not made for")
    if cutting.tile:
        print(f"images with {what} are read whole: images.tile={cutting.tile} of the run does not cut them")
    labels = "none" if labels in ("auto", "folder") else labels
    canvases = canvases_for(readers, root / "images", labels, enlarged=ENLARGED)
    if annotated and not masked:
        canvases = _annotated(root, canvases)
    masks = find_masks(root, canvases.names, canvases.original, options) if masked else None
    objects = find_annotations(root, canvases.names, canvases.original) if annotated else None
    return _Opened(canvases, masks, objects)


def _annotated(root: Path, canvases: Canvases) -> Canvases:
    """Without the images of folders that have no file of objects, which is said; all where none has one."""
    rows = annotated_rows(root, canvases.names)
    if len(rows) in (0, len(canvases)):
        return canvases
    without = sorted({name.partition("/")[0] for name in canvases.names} - set(annotation_files(root)))
    told = f"{len(canvases) - len(rows)} images of images/{without[0]}" + (" and others" if len(without) > 1 else "")
    print(f"{told} are left out: there is no annotations/instances_{without[0]}.json")
    return canvases.subset(rows)


def _by_protocol(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{"knn.ks": [1]} as {"knn": {"ks": [1]}}."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        name, dot, option = key.partition(".")
        if not dot:
            raise UserError(f"{key}: give an option of a protocol as PROTOCOL.OPTION=VALUE, as in knn.temperature=0.1")
        found.setdefault(name, {})[option] = value
    return found
