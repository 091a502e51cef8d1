"""IRT on held-out classes: does metric learning find more than the weights it began from, and what does KoLeo add?

    python benchmarks/retrieval.py             # the margin, then three data sets x four lambdas x three seeds
    python benchmarks/retrieval.py --table     # only write docs/retrieval.md anew

As metric learning is tested: trained on the first half of the classes, asked about the other half, each image the
query and all others the gallery. The weights that everything begins from are those of SimCLR on the photographs of
Imagenette; frozen, they are the off-the-shelf row. The margin is chosen among the classes of Grocery that are for
training, one half of them asked about, and is then the same everywhere. Reads the archives of
../shared/data. Numbers of steps are written here, so that a run is the same whatever else the machine does. Killed, it
goes on with the same command; a finished run is not done twice. Writes one JSON a run to benchmarks/results/retrieval
and the table of docs/retrieval.md.
"""

from __future__ import annotations

import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import belvedere
from cifar_runs import NETWORKS, finish, machine, places, unpack_once, write_between

SIZE = 48
START = {"train.steps": 600, "train.batch": 128}
TRAIN = {"train.steps": 300, "train.batch": 64}
LAMBDAS = (0.0, 0.35, 0.7, 1.0)
SEEDS = (0, 1, 2)
# The first is the paper's; with it the loss pushes until classes are nearly orthogonal, which few classes soon are.
MARGINS = (0.5, 0.65, 0.8, 0.9)
METRICS = ("recall1", "recall10", "map_r")
ARCHIVES = (
    "imagenette128.tar",
    "grocery128.tar",
    "coil20_24views.tar",
    "cifar10_train20k.tar.gz",
)
# Folder and pattern of a set's images, and how many of a class are taken.
PLACES = {
    "grocery": ("grocery128", "train/*/*.jpg", None),
    "coil20": ("coil20", "obj*/view*.png", None),
    "cifar10": ("cifar10", "train/*/*.png", 300),
}
TITLES = {
    "grocery": "Grocery: photographs from shops, 41 classes for training, 40 others asked about",
    "coil20": "COIL-20: gray views of things on a turntable, 10 things for training, 10 others asked about",
    "cifar10": "CIFAR-10: 300 photographs a class, 5 classes for training, 5 others asked about",
}


def halves(work: Path, name: str) -> tuple[Path, Path]:
    """Lists of the images of the first half of the classes, and of the second."""
    root, pattern, most = PLACES[name]
    classes: dict[str, list[Path]] = {}
    for file in sorted((work / root).glob(pattern)):
        classes.setdefault(file.parent.name, []).append(file)
    files = [file for members in classes.values() for file in members[:most]]
    return _split(work / root, files, "known", "held_out")


def halves_of_known(work: Path) -> tuple[Path, Path]:
    """Lists of the images of the first and the second half of Grocery's classes for training, to choose by."""
    root = work / PLACES["grocery"][0]
    known = halves(work, "grocery")[0].read_text(encoding="utf-8").split("\n")
    return _split(root, [root / name for name in known if name], "choice_known", "choice_held_out")


def _split(root: Path, files: list[Path], first: str, second: str) -> tuple[Path, Path]:
    classes = sorted({file.parent.name for file in files})
    known = set(classes[: (len(classes) + 1) // 2])
    lists = root / f"{first}.txt", root / f"{second}.txt"
    for path, wanted in zip(lists, (True, False), strict=True):
        names = [file.relative_to(root).as_posix() for file in files if (file.parent.name in known) is wanted]
        path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return lists


def begin(work: Path, device: str, steps: int | None) -> Path:
    """The run whose weights everything begins from."""
    run = work / "retrieval-runs" / "start"
    settings = {**NETWORKS["cpu"], "views.size": SIZE, **START, **({"train.steps": steps} if steps else {})}
    finish("simclr", work / "imagenette128" / "train", run, settings, device)
    return run


def numbers(run: Path, known: Path, held_out: Path, device: str) -> dict[str, Any]:
    """Retrieval among the images of held-out classes, with the floors."""
    (result,) = belvedere.evaluate(run, known, test=held_out, protocols=("retrieval",), device=device)
    return result.to_json()


def spread_of(run: Path) -> float:
    """Mean distance of a training image to its nearest neighbour in the batch, over the last tenth of the steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line["nearest_distance"] for line in lines if "nearest_distance" in line]
    return statistics.mean(found[-max(1, len(found) // 10) :])


def train(run: Path, lists: tuple[Path, Path], start: Path, arguments: Any, **chosen: Any) -> dict[str, Any]:
    """IRT from the run `start` on the first list, and what it finds in the second; `chosen` are options of IRT's."""
    settings = {
        **NETWORKS["cpu"],
        "views.size": SIZE,
        "images.channels": 3,
        "backbone.weights": str(start),
        **{key.replace("__", "."): value for key, value in chosen.items()},
        **TRAIN,
        **({"train.steps": arguments.steps} if arguments.steps else {}),
    }
    about = machine()
    finish("irt", lists[0], run, settings, arguments.device)
    return {
        "settings": settings | {"backbone.weights": "start"},
        "machine": about,
        "test": numbers(run, *lists, arguments.device),
        "nearest_distance": spread_of(run),
    }


def choose(start: Path, results: Path, arguments: Any) -> float:
    """The margin that finds most (mAP@R) where one half of the known classes is asked about."""
    found = {}
    for margin in MARGINS:
        path = results / f"choice_margin{margin:g}.json"
        if not path.exists():
            run = arguments.work / "retrieval-runs" / f"choice_margin{margin:g}"
            one = train(run, halves_of_known(arguments.work), start, arguments, objective__margin=margin)
            path.write_text(json.dumps({"margin": margin} | one, indent=1) + "\n")
        found[margin] = json.loads(path.read_text())["test"]["metrics"]["run"]["map_r"]["value"]
    return max(found, key=found.__getitem__)


def table(results: Path) -> str:
    """Markdown: a table a data set, a row a lambda, mean and lowest to highest over the seeds."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    parts = [_margins([one for one in found if "margin" in one])]
    found = [one for one in found if "data" in one]
    for name, title in TITLES.items():
        head = ["", "R@1, %", "R@10, %", "mAP@R, %", "distance to the nearest"]
        rows = [head, ["---"] * len(head)]
        for one in (one for one in found if one["data"] == name and "lambda" not in one):
            for encoder, called in (("pixels", "raw pixels"), ("untrained", "no training"), ("run", "off the shelf")):
                rows.append(
                    [called, *(f"{one['test']['metrics'][encoder][metric]['value']:.1f}" for metric in METRICS), ""]
                )
        for weight in LAMBDAS:
            runs = [one for one in found if one["data"] == name and one.get("lambda") == weight]
            if runs:
                cells = [
                    _spread([one["test"]["metrics"]["run"][metric]["value"] for one in runs], 1) for metric in METRICS
                ]
                distance = _spread([one["nearest_distance"] for one in runs], 2)
                seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
                rows.append([f"IRT, lambda {weight:g} ({seeds})", *cells, distance])
        parts.append("\n".join([f"**{title}**", "", *(f"| {' | '.join(row)} |" for row in rows)]))
    return "\n\n".join(parts)


def _margins(found: list[dict[str, Any]]) -> str:
    head = ["margin", "R@1, %", "R@10, %", "mAP@R, %"]
    rows = [head, ["---"] * len(head)]
    for one in found:
        values = [one["test"]["metrics"]["run"][metric]["value"] for metric in METRICS]
        rows.append([f"{one['margin']:g}", *(f"{value:.1f}" for value in values)])
    title = "**The margin: of the 41 classes of Grocery for training, 20 asked about after training on 21**"
    return "\n".join([title, "", *(f"| {' | '.join(row)} |" for row in rows)])


def _spread(values: list[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = places(__doc__, "retrieval.md")
    parser.add_argument("--only", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--lambdas", nargs="+", type=float, default=list(LAMBDAS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, help="fewer steps than are written here, for a trial")
    arguments = parser.parse_args()
    results = arguments.results / "retrieval"
    results.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        for archive in ARCHIVES:
            unpack_once(arguments.archives / archive, arguments.work)
        start = begin(arguments.work, arguments.device, arguments.steps)
        for name in arguments.only:
            shelf = results / f"{name}_off_the_shelf.json"
            if not shelf.exists():
                found = numbers(start, *halves(arguments.work, name), arguments.device)
                shelf.write_text(json.dumps({"data": name, "machine": machine(), "test": found}, indent=1) + "\n")
        margin = choose(start, results, arguments)
        for seed, name, weight in product(arguments.seeds, arguments.only, arguments.lambdas):
            case = f"{name}_lambda{weight:g}_seed{seed}"
            if not (results / f"{case}.json").exists():
                chosen = {"objective__margin": margin, "objective__koleo": weight, "train__seed": seed}
                run = arguments.work / "retrieval-runs" / case
                one = train(run, halves(arguments.work, name), start, arguments, **chosen)
                about = {"data": name, "lambda": weight, "seed": seed}
                (results / f"{case}.json").write_text(json.dumps(about | one, indent=1) + "\n")
                print(f"written: {case}", flush=True)
    write_between(arguments.page, "retrieval", "retrieval.py", table(results))


if __name__ == "__main__":
    main()
