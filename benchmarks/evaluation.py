"""Every evaluation protocol on real images: a small pretrained network beside raw pixels and no training.

    python benchmarks/evaluation.py                  # all data sets
    python benchmarks/evaluation.py --only camvid    # one of them
    python benchmarks/evaluation.py --table          # only write docs/benchmarks.md anew

Reads the archives of ../shared/data as they are, and files of the Python installation as pictures of bytes. On each
data set a ViT (width 192, depth 4, patch 8) is pretrained on the training images without labels, by SimCLR or by the
recipe that the case names, for a number of steps that is written here, so that a run is the same whatever else the
machine does meanwhile. Then the protocols that fit the data run as `belvedere evaluate` runs them: choices on a part of
train, the test images read once. Killed, it goes on with the same command; a finished data set is not done twice.
Writes one JSON a data set to benchmarks/results/evaluation and the tables of docs/benchmarks.md.
"""

from __future__ import annotations

import csv
import json
import shutil
import sysconfig
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

import belvedere
from belvedere.evaluate.compare import difference
from belvedere.evaluate.contract import PIXELS, RUN, UNTRAINED, Number, Result
from belvedere.images.masks import find_masks
from belvedere.report.numbers import PROTOCOLS, metric_name
from cifar_runs import NETWORKS, finish, machine, places, subset, unpack_once, write_between

# Of every protocol, what the table tells.
HEADLINES = {
    "knn": ("top1",),
    "logistic": ("top1",),
    "linear": ("top1",),
    "fewshot": ("shots1", "shots4", "shots8"),
    "finetune": ("top1", "balanced", "macro_f1"),
    "retrieval": ("recall1", "map_r"),
    "vlad": ("map", "map_plain", "map_reranked", "map_global", "map_global_whitened", "top1", "top1_global"),
    "cluster": ("nmi", "matched"),
    "map": ("kept",),
    "duplicates": ("duplicated", "test_twins", "suspected"),
    "seg_knn": ("miou",),
    "seg_linear": ("miou",),
    "seg_fpn": ("miou",),
    "detection": ("box_ap", "box_ap50", "mask_ap", "mask_ap50"),
    "attention": ("best_head", "mean_head"),
    "correspondence": ("within1",),
    "ood": ("knn_auroc", "softmax_auroc"),
    "shift": ("frechet", "frechet_within", "top1_here", "top1_there"),
    "corruption": ("clean", "mean"),
}
# Of these more is neither better nor worse.
NEITHER = frozenset(("duplicated", "test_twins", "suspected", "frechet", "frechet_within", "kept"))


@dataclass(frozen=True)
class Images:
    """What `belvedere evaluate` is given; `unlabelled` is what is pretrained on."""

    unlabelled: Path | str
    train: Path | str
    test: Path | str
    other: Path | None = None
    labels: str = "auto"


@dataclass(frozen=True)
class Case:
    """A data set: how its images are found, how long a network of which size is pretrained, and what is asked.

    `settings` are options of the protocols, `pretraining` those of the recipe that are not its own.
    """

    name: str
    title: str
    archives: tuple[str, ...]
    images: Callable[[Path], Images]
    size: int
    batch: int
    steps: int
    protocols: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    pretraining: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = "simclr"


def cifar10(folder: Path) -> Images:
    """5,000 training images, and all test images."""
    train = subset(folder / "cifar10" / "train", 5000)
    return Images(train, train, folder / "cifar10" / "test")


def imagenette(folder: Path) -> Images:
    """Photographs of ten classes; photographs of groceries are foreign to them."""
    root = folder / "imagenette128"
    return Images(root / "train", root / "train", root / "val", other=folder / "grocery128" / "val")


def camvid(folder: Path) -> Images:
    """Street scenes with masks."""
    root = folder / "camvid"
    return Images(root / "train" / "images", root / "train", root / "val")


# Bytes of an installed file that is taken.
SMALLEST, LARGEST = 500, 20_000_000
# Of CamVid's classes those that come as single things, and the fewest pixels that count as one.
THINGS, FEWEST = ("car", "pedestrian", "bicyclist", "sign_symbol"), 200


def camvid_objects(folder: Path) -> Images:
    """Street scenes with objects: connected parts of a class in the masks, so cars that touch are one."""
    place = folder / "camvid_objects"
    shutil.copytree(folder / "camvid", place, dirs_exist_ok=True)
    for split in ("train", "val"):
        root = place / split
        masks = find_masks(root, sorted(file.name for file in (root / "images").iterdir()))
        ids = {masks.classes.index(name): k + 1 for k, name in enumerate(THINGS)}
        content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        content["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(THINGS)]
        for i, file in enumerate(masks.files):
            mask = masks[i]
            image = {"id": i, "file_name": f"{file.stem}.jpg", "width": mask.shape[1], "height": mask.shape[0]}
            content["images"].append(image)
            for label, category in ids.items():
                parts, _ = ndimage.label(mask == label)
                for k, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
                    own = parts == k
                    if own.sum() >= FEWEST:
                        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
                        found = {"id": len(content["annotations"]), "image_id": i, "category_id": category}
                        found |= {"bbox": box, "area": int(own.sum()), "iscrowd": 0, "segmentation": _run_lengths(own)}
                        content["annotations"].append(found)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / "instances.json").write_text(json.dumps(content))
    return Images(place / "train" / "images", place / "train", place / "val")


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's run-length code: lengths of runs of 0 and 1 in turns, column by column."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    ends = np.flatnonzero(np.diff(flat.astype(np.int8)))
    counts = np.diff(np.concatenate([[0], ends, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def grocery(folder: Path) -> Images:
    """Groceries on shelves; the shop's own picture of each is the same thing taken elsewhere."""
    root = folder / "grocery128"
    return Images(root / "train", root / "train", root / "val", other=root / "iconic")


def coil20(folder: Path) -> Images:
    """Things on a turntable: every second view for training, the others ask each other."""
    root = folder / "coil20"
    views = [file.relative_to(root).as_posix() for file in sorted(root.glob("obj*/view*.png"))]
    train, test = _listed(root / "train.txt", views[::2]), _listed(root / "test.txt", views[1::2])
    return Images(train, train, test)


def omniglot(folder: Path) -> Images:
    """Characters as classes, named by a CSV file; the last six of the twenty drawers of each alphabet are held out."""
    root = folder / "omniglot_small"
    rows = []
    names: dict[bool, list[str]] = {False: [], True: []}
    for file in sorted(root.glob("*/character*/*.png")):
        name, drawer = file.relative_to(root), int(file.stem.rpartition("_")[2])
        alphabet, character, _ = name.parts
        rows.append((name.as_posix(), f"{alphabet} {character}", f"{alphabet} {drawer}"))
        names[drawer > 14].append(name.as_posix())
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([("path", "label", "group"), *rows])
    train, test = _listed(root / "train.txt", names[False]), _listed(root / "test.txt", names[True])
    return Images(train, train, test, labels=str(root / "labels.csv"))


def pneumonia(folder: Path) -> Images:
    """X-rays as arrays in one file, read as it is."""
    file = folder / "pneumoniamnist28.npz"
    return Images(file / "train", file / "train", file / "test")


def writers(folder: Path) -> Images:
    """Pages of 16 digits of one hand each, in four windows; every third writer is held out, as in writer retrieval."""
    root = folder / "writers"
    with np.load(folder / "mnist_writers.npz") as file:
        digits, hands = file["images"], file["writer"]
    for place, writer in enumerate(np.unique(hands).tolist()):
        own = np.pad(digits[hands == writer], ((0, 0), (2, 2), (2, 2)))
        hand = root / ("train" if place % 3 else "test") / f"{writer:04}"
        hand.mkdir(parents=True, exist_ok=True)
        for page in range(len(own) // 16):
            rows = own[16 * page : 16 * page + 16].reshape(4, 4, 32, 32).transpose(0, 2, 1, 3)
            Image.fromarray(rows.reshape(128, 128)).save(hand / f"page{page}.png")
    return Images(root / "train", root / "train", root / "test")


def drawers(folder: Path) -> Images:
    """Pages of 8 characters by one drawer of an alphabet, in two windows; every third drawer is held out.

    Pages of one hand hold different characters of one alphabet, so the alphabet tells five of six strangers.
    """
    root = folder / "drawers"
    for alphabet in sorted(path for path in (folder / "omniglot_small").iterdir() if path.is_dir()):
        for drawer in range(1, 21):
            hand = root / ("test" if drawer % 3 == 0 else "train") / f"{alphabet.name} {drawer:02}"
            hand.mkdir(parents=True, exist_ok=True)
            files = sorted(alphabet.glob(f"character*/*_{drawer:02}.png"))
            signs = [Image.open(file).convert("L").resize((32, 32), Image.Resampling.LANCZOS) for file in files]
            for page in range(len(signs) // 8):
                rows = np.stack([np.asarray(sign) for sign in signs[8 * page : 8 * page + 8]]).reshape(2, 4, 32, 32)
                Image.fromarray(rows.transpose(0, 2, 1, 3).reshape(64, 128)).save(hand / f"page{page}.png")
    return Images(root / "train", root / "train", root / "test")


def binaries(folder: Path) -> Images:
    """Ten times as many files of bytecode as shared libraries, of what is installed beside this Python."""
    return _files(folder / "binaries", {"bytecode": ("*.pyc", 1000, 500), "library": ("*.so", 100, 50)})


def texts(folder: Path) -> Images:
    """Sources in two languages."""
    return _files(folder / "texts", {"python": ("*.py", 600, 300), "c": ("*.h", 600, 300)})


def _files(root: Path, kinds: Mapping[str, tuple[str, int, int]]) -> Images:
    """Installed files of some kinds, so many for training and for the test, drawn by their names; as pictures of bytes.

    Files of one package are alike, so a package is in the training or in the test.
    """
    installed = Path(sysconfig.get_paths()["purelib"])
    for kind, (pattern, train, test) in kinds.items():
        wanted = {"train": train, "test": test}
        files = [file for file in installed.rglob(pattern) if SMALLEST <= file.stat().st_size <= LARGEST]
        for file in sorted(files, key=lambda file: _drawn(file.relative_to(installed).as_posix())):
            split = "test" if _drawn(file.relative_to(installed).parts[0]) % 3 == 0 else "train"
            if wanted[split]:
                wanted[split] -= 1
                place = root / split / kind / f"{wanted[split]:04}{file.suffix}"
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
        if any(wanted.values()):
            raise SystemExit(f"{installed}: too few files {pattern} ({wanted} are missing)")
    return Images(f"bytes:{root / 'train'}", f"bytes:{root / 'train'}", f"bytes:{root / 'test'}")


def _drawn(name: str) -> int:
    return zlib.crc32(name.encode())


def _listed(file: Path, names: Sequence[str]) -> Path:
    file.write_text("\n".join(names) + "\n", encoding="utf-8")
    return file


# Enough to tell two networks apart on a CPU, far from what a detector can learn.
SHORT = {"epochs": 6, "batch": 2, "lr": 1e-3, "width": 32}
GENTLE = SHORT | {"lr": 3e-4}
CASES = (
    Case(
        "pneumoniamnist",
        "PneumoniaMNIST: 1,200 X-rays as 28 px gray arrays; 38 % / 62 % of the test images",
        ("pneumoniamnist28.npz",),
        pneumonia,
        size=32,
        batch=128,
        steps=150,
        protocols=("knn", "logistic", "fewshot", "finetune"),
        settings={"finetune.epochs": 10},
    ),
    Case(
        "camvid",
        "CamVid: 367 street scenes with masks of 11 classes",
        ("camvid_trainval.tar",),
        camvid,
        size=64,
        batch=64,
        steps=200,
        protocols=("seg_knn", "seg_linear", "attention", "correspondence"),
    ),
    Case(
        "camvid_objects",
        "CamVid, the whole network trained: classes of pixels, and 4 kinds of objects (connected parts of their masks)",
        ("camvid_trainval.tar",),
        camvid_objects,
        size=64,
        batch=64,
        steps=200,
        protocols=("seg_fpn", "detection"),
        settings={f"{name}.{key}": value for name in ("seg_fpn", "detection") for key, value in SHORT.items()},
    ),
    Case(
        "camvid_objects_selfpatch",
        "CamVid again, pretrained with SelfPatch's task on hard views, the detectors trained at a third of that rate",
        ("camvid_trainval.tar",),
        camvid_objects,
        size=64,
        batch=64,
        steps=200,
        protocols=("seg_fpn", "detection"),
        settings={f"{name}.{key}": value for name in ("seg_fpn", "detection") for key, value in GENTLE.items()},
        pretraining={"tasks": ["selfpatch"], "views.policy": "hard"},
        recipe="mocov3",
    ),
    Case(
        "coil20",
        "COIL-20: 240 gray views of 20 things on a turntable, the 240 views between them for the test",
        ("coil20_24views.tar",),
        coil20,
        size=32,
        batch=128,
        steps=150,
        protocols=("knn", "retrieval", "duplicates", "cluster"),
    ),
    Case(
        "grocery",
        "Grocery: 2,640 photographs of 81 fine classes from shops",
        ("grocery128.tar",),
        grocery,
        size=48,
        batch=64,
        steps=200,
        protocols=("knn", "retrieval", "shift"),
    ),
    Case(
        "omniglot",
        "Omniglot: 242 characters of 14 drawers each, 6 other drawers for the test",
        ("omniglot_small.tar.gz",),
        omniglot,
        size=32,
        batch=128,
        steps=200,
        protocols=("knn", "fewshot", "retrieval"),
        settings={"fewshot.shots": [1, 2, 4], "fewshot.draws": 2},
    ),
    Case(
        "writers",
        "MNIST's writers: 1,482 pages of 16 digits by 226 hands, 729 pages by 113 others for the test",
        ("mnist_writers.npz",),
        writers,
        size=64,
        batch=64,
        steps=200,
        protocols=("vlad",),
        settings={"vlad.min_ink": 8},
        pretraining={"images.tile": 64, "views.flip": 0.0, "views.global_scale": [0.4, 1.0]},
    ),
    Case(
        "writers_ibot",
        "MNIST's writers again, by the way of writer retrieval: iBOT that masks what its teacher looks at",
        ("mnist_writers.npz",),
        writers,
        size=64,
        batch=32,
        steps=150,
        protocols=("vlad",),
        settings={"vlad.min_ink": 8},
        pretraining={
            "images.binarize": "none",
            "images.tile": 64,
            "images.tile_overlap": 0.0,
            "views.local_size": 32,
            "views.locals": 4,
        },
        recipe="writer",
    ),
    Case(
        "binaries",
        "Files as pictures of bytes: 1,000 of Python's bytecode and 100 libraries, 500 and 50 of other packages",
        (),
        binaries,
        size=64,
        batch=64,
        steps=200,
        protocols=("logistic", "finetune"),
        settings={"finetune.epochs": 3, "finetune.balanced": True, "finetune.policy": "random"},
        pretraining={"task.mae.depth": 2},
        recipe="sherlock",
    ),
    Case(
        "texts",
        "Files as pictures of bytes: 600 sources of Python and 600 headers of C, 300 and 300 of other packages",
        (),
        texts,
        size=64,
        batch=64,
        steps=200,
        protocols=("logistic", "finetune"),
        settings={"finetune.epochs": 3, "finetune.balanced": True, "finetune.policy": "random"},
        pretraining={"task.mae.depth": 2},
        recipe="sherlock",
    ),
    Case(
        "drawers",
        "Omniglot's drawers: pages of 8 characters, 112 hands for training and 48 others for the test",
        ("omniglot_small.tar.gz",),
        drawers,
        size=64,
        batch=64,
        steps=200,
        protocols=("vlad",),
        settings={"vlad.min_ink": 8},
        pretraining={"images.tile": 64, "views.flip": 0.0, "views.global_scale": [0.4, 1.0]},
    ),
    Case(
        "omniglot_views",
        "Omniglot again, with views that keep at least half of a character and never mirror it",
        ("omniglot_small.tar.gz",),
        omniglot,
        size=32,
        batch=128,
        steps=200,
        protocols=("knn", "retrieval"),
        pretraining={"views.flip": 0.0, "views.global_scale": [0.5, 1.0]},
    ),
    Case(
        "cifar10",
        "CIFAR-10: 5,000 of the training images, all 10,000 test images",
        ("cifar10_train20k.tar.gz", "cifar10_test10k.tar.gz"),
        cifar10,
        size=32,
        batch=128,
        steps=300,
        protocols=("knn", "logistic", "linear", "fewshot", "cluster", "map", "corruption"),
    ),
    Case(
        "imagenette",
        "Imagenette: 6,500 photographs of 10 classes, 128 px; groceries as foreign images",
        ("imagenette128.tar", "grocery128.tar"),
        imagenette,
        size=48,
        batch=64,
        steps=200,
        protocols=("knn", "logistic", "duplicates", "correspondence", "ood"),
    ),
)


def measure(case: Case, archives: Path, work: Path, device: str, steps: int | None) -> dict[str, Any]:
    """Pretrain on a data set and evaluate."""
    about = machine()
    for archive in case.archives:
        unpack_once(archives / archive, work)
    images = case.images(work)
    settings = {
        **NETWORKS["cpu"],
        "views.size": case.size,
        "train.batch": case.batch,
        "train.steps": steps or case.steps,
        **case.pretraining,
    }
    run = work / "evaluation-runs" / case.name
    finish(case.recipe, images.unlabelled, run, settings, device)
    results = belvedere.evaluate(
        run,
        images.train,
        test=images.test,
        other=images.other,
        labels=images.labels,
        protocols=case.protocols,
        settings=case.settings,
        device=device,
    )
    return {
        "recipe": case.recipe,
        "settings": settings,
        "machine": about,
        "test": {result.protocol: result.to_json() for result in results},
        "verdict": json.loads((run / "evaluation.json").read_text())["verdict"],
        "gains": {result.protocol: gains(result) for result in results},
    }


def gains(result: Result) -> dict[str, dict[str, dict[str, float]]]:
    """Metric -> floor -> this run less the floor over the same test items, where the metric is a mean of such."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for metric in HEADLINES[result.protocol]:
        own = result.items.get(RUN, {}).get(metric)
        for floor in (UNTRAINED, PIXELS):
            other = result.items.get(floor, {}).get(metric)
            if own is not None and other is not None:
                points = difference(other, own).points
                found.setdefault(metric, {})[floor] = {"value": points.value, "low": points.low, "high": points.high}
    return found


def table(results: Path) -> str:
    """Markdown: a table a data set, a row a number, with the gain over the better floor."""
    parts = []
    for case in CASES:
        path = results / f"{case.name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            head = ["protocol", "what", "this run", "untrained", "raw pixels", "over the better floor"]
            rows = [row for protocol in case.protocols for row in rows_of(protocol, found)]
            lines = [
                f"**{case.title}**; {found['settings']['train.steps']} steps of {case.batch} images of {case.size} px "
                f"by `{case.recipe}`.",
                "",
            ]
            lines += [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def rows_of(protocol: str, found: Mapping[str, Any]) -> list[list[str]]:
    """Cells of a protocol's headline numbers."""
    metrics = found["test"][protocol]["metrics"]
    rows = []
    for metric in HEADLINES[protocol]:
        numbers = {name: Number(**of[metric]) for name, of in metrics.items() if metric in of}
        if RUN not in numbers:
            continue
        cells = [_cell(numbers.get(name)) for name in (RUN, UNTRAINED, PIXELS)]
        rows.append(
            [PROTOCOLS[protocol], metric_name(metric), *cells, _gain(numbers, found["gains"][protocol], metric)]
        )
    return rows


def _cell(number: Number | None) -> str:
    return "" if number is None else f"{number.value:.1f} [{number.low:.1f}, {number.high:.1f}]"


def _gain(numbers: Mapping[str, Number], paired: Mapping[str, Any], metric: str) -> str:
    """Points over the better floor: with its interval where test items were compared, bold where that leaves 0."""
    floors = {name: numbers[name].value for name in (UNTRAINED, PIXELS) if name in numbers}
    if metric in NEITHER or not floors:
        return ""
    best = max(floors, key=lambda name: floors[name])
    if metric not in paired:
        return f"{numbers[RUN].value - floors[best]:+.1f}"
    n = paired[metric][best]
    told = f"{n['value']:+.1f} [{n['low']:+.1f}, {n['high']:+.1f}]"
    return f"**{told}**" if n["low"] > 0 or n["high"] < 0 else told


def main() -> None:
    parser = places(__doc__, "benchmarks.md")
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="DATA", help=", ".join(names))
    parser.add_argument("--steps", type=int, help="fewer steps than are written here, for a trial")
    arguments = parser.parse_args()
    results = arguments.results / "evaluation"
    results.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        path = results / f"{case.name}.json"
        if case.name in arguments.only and not (arguments.table or path.exists()):
            found = measure(case, arguments.archives, arguments.work, arguments.device, arguments.steps)
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(f"written: {path}", flush=True)
    write_between(arguments.page, "evaluation", "evaluation.py", table(results))


if __name__ == "__main__":
    main()
