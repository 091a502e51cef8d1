"""How fast the views are made, against what others use: ratios, measured in turns in one process.

    python benchmarks/speed.py              # nine workloads, five peers, about 12 minutes of one core
    python benchmarks/speed.py --threads 2  # two threads against two loader workers, on an idle machine
    python benchmarks/speed.py --table      # only write docs/speed.md anew

Everybody gets the same photographs (decoded; in the last workload JPEG files) and gives normalised float32 views
[N, C, h, w] of one law: crops, flips, jitter, grayscale, blur, solarize with parameters of its own for every view. The
laws are checked first: where crops lie and what colours come out, against ours (two-sample Kolmogorov-Smirnov
distances, in the JSON). Parameters are drawn, and ours recorded, within the time. One thread, the processor's time of
it, all in turns, medians; only the ratios are told. The peers are installed into runs/benchmarks/peers, a folder of
their own. Writes benchmarks/results/speed.json and the table of docs/speed.md.

With `--threads 2`: three workloads by the clock. Ours with one thread and with two, against torchvision's first and
second transforms in a DataLoader with two workers, which live only in their turn; the batches that they had ready
before are not timed. Writes benchmarks/results/speed_threads.json and a table of its own.
"""

from __future__ import annotations

import argparse
import importlib
import io
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.stats import ks_2samp
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from belvedere.views.policies.randaugment import RandAugment
from belvedere.views.policy import ViewPolicy
from belvedere.views.render import Backend, render_views
from belvedere.views.slots import Slot, ViewSettings, build_slots
from cifar_runs import machine, places, unpack_once, write_between

PEERS = (
    "kornia==0.9.0",
    "kornia-rs==0.2.0",
    "albumentations==2.0.8",
    "albucore==0.0.24",
    "stringzilla",
    "simsimd",
    "opencv-python-headless",
    "lightly==1.6.0",
    "lightly-utils",
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROUNDS, WARM = 7, 2
OURS, PLAIN = "belvedere", "belvedere, plain torch"
# Ours draws by epoch, and no two calls should draw the same.
EPOCHS = itertools.count()
Photographs = NDArray[np.uint8]
# Photographs [N, H, W, C] to the views of every slot, [N, C, h, w] each.
Maker = Callable[[Photographs], list[Tensor]]


@dataclass(frozen=True)
class Workload:
    """Views of so many photographs of `side` px, decoded already; or (no side) of JPEG files, decoding included.

    With `randaugment`, two of its operations take the place of jitter, grayscale, blur and solarize.
    """

    name: str
    images: int
    side: int | None
    settings: ViewSettings
    randaugment: bool = False

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The laws of its views."""
        return build_slots(self.settings, 3)


def _simclr(size: int) -> ViewSettings:
    blur = 0.0 if size == 32 else 0.5
    strong = (0.8, 0.8, 0.8, 0.2)
    return ViewSettings(
        (size, size), global_scale=(0.08, 1.0), jitter=strong, blur_p=(blur,) * 3, solarize_p=(0.0,) * 3
    )


def _dino(size: int, count: int, local: int) -> ViewSettings:
    return ViewSettings((size, size), locals=count, local_size=(local, local))


WORKLOADS = (
    Workload("simclr 2x32", 256, 32, _simclr(32)),
    Workload("dino 2x32+4x16", 256, 32, _dino(32, 4, 16)),
    Workload("simclr 2x96", 64, 128, _simclr(96)),
    Workload("dino 2x96+6x40", 64, 128, _dino(96, 6, 40)),
    Workload("simclr 2x224", 16, 256, _simclr(224)),
    Workload("dino 2x224+8x96", 16, 256, _dino(224, 8, 96)),
    Workload("JPEG to dino 2x224+8x96", 16, None, _dino(224, 8, 96)),
    Workload("randaugment 2x32", 256, 32, _simclr(32), randaugment=True),
    Workload("randaugment 2x224", 16, 256, _simclr(224), randaugment=True),
)


# --- the peers, each as its own documentation has it ------------------------------------------------------------------


def ours(slots: Sequence[Slot], backend: Backend = "native", policy: type[ViewPolicy] = ViewPolicy) -> Maker:
    """Our engine as training calls it on the CPU."""
    drawing = policy(policy.Options(), tuple(slots), 3)

    def make(photographs: Photographs) -> list[Tensor]:
        images = torch.from_numpy(photographs)
        sizes = np.tile(photographs.shape[1:3], (len(images), 1))
        params = drawing.propose(np.arange(len(images)), sizes, next(EPOCHS), 0)
        views = render_views(images, params, mean=MEAN, std=STD, backend=backend, program=drawing.program)
        return [views[slot.name] for slot in slots]

    return make


def _each(pipelines: Sequence[Callable[[Any], Tensor]], convert: Callable[[Photographs], Any]) -> Maker:
    """A pipeline a slot, image by image, as data loaders call them."""

    def make(photographs: Photographs) -> list[Tensor]:
        images = [convert(photograph) for photograph in photographs]
        return [torch.stack([pipeline(image) for image in images]) for pipeline in pipelines]

    return make


class _PilBlur:
    """Gaussian blur by Pillow, as the code of DINO has it."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.slot.blur_p:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.slot.sigma)))


def _on_pillow(slots: Sequence[Slot], colours: Callable[[Slot], list[Any]]) -> Maker:
    """torchvision's first transforms on Pillow images, `colours` between flip and normalisation."""

    def pipeline(slot: Slot) -> Callable[[Any], Tensor]:
        crop = v1.RandomResizedCrop(slot.size, slot.scale, slot.ratio, interpolation=v1.InterpolationMode.BICUBIC)
        whole = [crop, v1.RandomHorizontalFlip(slot.flip), *colours(slot), v1.ToTensor(), v1.Normalize(MEAN, STD)]
        return v1.Compose(whole)

    return _each([pipeline(slot) for slot in slots], Image.fromarray)


def _on_bytes(slots: Sequence[Slot], colours: Callable[[Slot], list[Any]]) -> Maker:
    """torchvision's second transforms on uint8 tensors, `colours` between flip and normalisation."""

    def pipeline(slot: Slot) -> Callable[[Any], Tensor]:
        bicubic = {"interpolation": v2.InterpolationMode.BICUBIC, "antialias": True}
        crop = v2.RandomResizedCrop(slot.size, slot.scale, slot.ratio, **bicubic)
        after = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        return v2.Compose([crop, v2.RandomHorizontalFlip(slot.flip), *colours(slot), *after])

    return _each([pipeline(slot) for slot in slots], lambda image: torch.from_numpy(image).permute(2, 0, 1))


def torchvision_pil(slots: Sequence[Slot]) -> Maker:
    """Our colours by torchvision's first transforms."""

    def colours(slot: Slot) -> list[Any]:
        return [
            v1.RandomApply([v1.ColorJitter(*slot.jitter)], slot.jitter_p),
            v1.RandomGrayscale(slot.gray_p),
            _PilBlur(slot),
            v1.RandomSolarize(128, slot.solarize_p),
        ]

    return _on_pillow(slots, colours)


def _kernel(slot: Slot) -> int:
    return 2 * min(int(np.ceil(3 * slot.sigma[1])), slot.size[0] - 1) + 1


def torchvision_v2(slots: Sequence[Slot]) -> Maker:
    """Our colours by torchvision's second transforms."""

    def colours(slot: Slot) -> list[Any]:
        return [
            v2.RandomApply([v2.ColorJitter(*slot.jitter)], slot.jitter_p),
            v2.RandomGrayscale(slot.gray_p),
            v2.RandomApply([v2.GaussianBlur(_kernel(slot), slot.sigma)], slot.blur_p),
            v2.RandomSolarize(128, slot.solarize_p),
        ]

    return _on_bytes(slots, colours)


def randaugment_pil(slots: Sequence[Slot]) -> Maker:
    """torchvision's RandAugment on Pillow images, as strong as ours."""
    return _on_pillow(slots, lambda _: [v1.RandAugment(2, 27, interpolation=v1.InterpolationMode.BILINEAR)])


def randaugment_v2(slots: Sequence[Slot]) -> Maker:
    """The same of torchvision's second transforms."""
    return _on_bytes(slots, lambda _: [v2.RandAugment(2, 27, interpolation=v2.InterpolationMode.BILINEAR)])


def kornia(slots: Sequence[Slot]) -> Maker:
    """kornia's modules on a float batch, parameters of every image its own."""
    augmentation = importlib.import_module("kornia.augmentation")

    def pipeline(slot: Slot) -> Any:
        kernel = _kernel(slot)
        return augmentation.AugmentationSequential(
            augmentation.RandomResizedCrop(slot.size, slot.scale, slot.ratio, resample="bicubic"),
            augmentation.RandomHorizontalFlip(p=slot.flip),
            augmentation.ColorJitter(*slot.jitter, p=slot.jitter_p),
            augmentation.RandomGrayscale(p=slot.gray_p),
            augmentation.RandomGaussianBlur((kernel, kernel), slot.sigma, p=slot.blur_p),
            # Solarize at 128 of 255 alone, with no addition.
            augmentation.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=slot.solarize_p),
            augmentation.Normalize(MEAN, STD),
            same_on_batch=False,
        )

    pipelines = [pipeline(slot) for slot in slots]

    def make(photographs: Photographs) -> list[Tensor]:
        batch = torch.as_tensor(photographs).permute(0, 3, 1, 2).float() / 255
        return [pipeline(batch) for pipeline in pipelines]

    return make


def albumentations(slots: Sequence[Slot]) -> Maker:
    """albumentations on NumPy images; its area interpolation, as LightlyTrain uses it."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    a, cv2 = importlib.import_module("albumentations"), importlib.import_module("cv2")
    cv2.setNumThreads(0)

    def pipeline(slot: Slot) -> Callable[[Any], Tensor]:
        around = [(max(0.0, 1 - strength), 1 + strength) for strength in slot.jitter[:3]]
        chain = a.Compose(
            [
                a.RandomResizedCrop(slot.size, slot.scale, slot.ratio, interpolation=cv2.INTER_AREA),
                a.HorizontalFlip(p=slot.flip),
                a.ColorJitter(*around, (-slot.jitter[3], slot.jitter[3]), p=slot.jitter_p),
                a.ToGray(p=slot.gray_p),
                a.GaussianBlur(blur_limit=0, sigma_limit=slot.sigma, p=slot.blur_p),
                a.Solarize(threshold_range=(0.5, 0.5), p=slot.solarize_p),
                a.Normalize(MEAN, STD),
            ]
        )
        return lambda image: torch.from_numpy(chain(image=image)["image"]).permute(2, 0, 1)

    return _each([pipeline(slot) for slot in slots], lambda image: image)


def lightly(slots: Sequence[Slot]) -> Maker:
    """lightly's own transforms by their arguments, on Pillow images: DINO's, the one of every argument."""
    found = importlib.import_module("lightly.transforms.dino_transform").DINOViewTransform

    def pipeline(slot: Slot) -> Callable[[Any], Tensor]:
        view = found(
            crop_size=slot.size[0],
            crop_scale=slot.scale,
            cj_prob=slot.jitter_p,
            cj_strength=1.0,
            cj_bright=slot.jitter[0],
            cj_contrast=slot.jitter[1],
            cj_sat=slot.jitter[2],
            cj_hue=slot.jitter[3],
            random_gray_scale=slot.gray_p,
            gaussian_blur=slot.blur_p,
            sigmas=slot.sigma,
            hf_prob=slot.flip,
            solarization_prob=slot.solarize_p,
            normalize={"mean": list(MEAN), "std": list(STD)},
        )
        return lambda image: view(image)

    return _each([pipeline(slot) for slot in slots], Image.fromarray)


MAKERS: dict[str, Callable[[Sequence[Slot]], Maker]] = {
    OURS: ours,
    PLAIN: partial(ours, backend="eager"),
    "torchvision, Pillow": torchvision_pil,
    "torchvision v2": torchvision_v2,
    "kornia": kornia,
    "albumentations": albumentations,
    "lightly": lightly,
}


RANDAUGMENT: dict[str, Callable[[Sequence[Slot]], Maker]] = {
    OURS: partial(ours, policy=RandAugment),
    PLAIN: partial(ours, backend="eager", policy=RandAugment),
    "torchvision, Pillow": randaugment_pil,
    "torchvision v2": randaugment_v2,
}


# --- the same law? ----------------------------------------------------------------------------------------------------


def law(maker: Callable[[Sequence[Slot]], Maker], count: int = 1500) -> dict[str, NDArray[np.float64]]:
    """Samples of what a law is made of: where crops lie and how large they are, and the colours that come out."""
    crop = Slot("global_a", (48, 48), (0.08, 1.0), jitter_p=0, gray_p=0)
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8)
    across, down = np.meshgrid(ramp, ramp)
    place = np.stack([across, down, np.zeros_like(across)], -1)
    (views,) = maker([replace(crop, flip=0.0)])(np.repeat(place[None], count, 0))
    x, y = (255 * (views[:, c] * STD[c] + MEAN[c]) for c in (0, 1))
    # Away from the border, which interpolation treats in several ways.
    inner = {"left": x[:, 24, 8], "right": x[:, 24, 39], "top": y[:, 8, 24], "bottom": y[:, 39, 24]}
    found = {name: values.round().double().numpy() for name, values in inner.items()}
    colours = replace(crop, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_p=0.2)
    flat = np.empty((count, 64, 64, 3), np.uint8)
    flat[:] = (170, 110, 60)
    (views,) = maker([colours])(flat)
    middle = views[:, :, 24, 24]
    for c, name in enumerate(("red", "green", "blue")):
        # In whole levels, which most give anyway.
        found[name] = (255 * (middle[:, c] * STD[c] + MEAN[c])).round().double().numpy()
    return found


def check_laws() -> dict[str, dict[str, float]]:
    """Kolmogorov-Smirnov distance of every peer's samples from ours, by what was sampled; ours from ours anew too."""
    reference = law(ours)
    return {
        name: {what: float(ks_2samp(reference[what], values).statistic) for what, values in law(maker).items()}
        for name, maker in MAKERS.items()
    }


# --- time -------------------------------------------------------------------------------------------------------------


def photographs(folder: Path, count: int, side: int) -> Photographs:
    """Photographs of Imagenette, scaled to `side`."""
    files = sorted(folder.glob("*/*.jpg"))[:: max(1, 6000 // count)][:count]
    images = [Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for file in files]
    return np.stack([np.asarray(image) for image in images])


def jpegs(count: int) -> list[bytes]:
    """Photographs of 500 x 350 px as JPEG files, quality 90: scikit-image's, several cuts of each."""
    from skimage import data

    pictures = [
        Image.fromarray(picture) for picture in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    ]
    files = []
    for i in range(count):
        picture, shift = pictures[i % len(pictures)], 4 * (i // len(pictures))
        cut = picture.crop((shift, shift, picture.width, picture.height)).resize((500, 350), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        cut.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def read(files: Sequence[bytes]) -> Photographs:
    """Pillow's decoder, for everybody."""
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def measure(workload: Workload, given: Callable[[], Photographs]) -> dict[str, list[float]]:
    """Seconds of this thread for all views, with what it takes to have the images, by peer, a round each in turns."""
    makers = {name: maker(workload.slots) for name, maker in (RANDAUGMENT if workload.randaugment else MAKERS).items()}
    times: dict[str, list[float]] = {name: [] for name in makers}
    for round_ in range(WARM + ROUNDS):
        for name, make in makers.items():
            began = time.thread_time()
            images = given()
            views = make(images)
            seconds = time.thread_time() - began
            for slot, view in zip(workload.slots, views, strict=True):
                if view.shape != (len(images), 3, *slot.size) or view.dtype != torch.float32:
                    raise RuntimeError(f"{name} made {tuple(view.shape)} {view.dtype} of {slot.name}")
            if round_ >= WARM:
                times[name].append(seconds)
    return times


def source(workload: Workload, folder: Path) -> Callable[[], Photographs]:
    """How a workload comes by its images: they are there, or files are decoded each time."""
    if workload.side is None:
        return partial(read, jpegs(workload.images))
    there = photographs(folder, workload.images, workload.side)
    return lambda: there


# --- more threads than one, by the clock ------------------------------------------------------------------------------


PARALLEL = ("simclr 2x32", "dino 2x96+6x40", "dino 2x224+8x96")
IN_WORKERS = ("torchvision, Pillow", "torchvision v2")
# Batches of a turn that are timed, for each thread, of which one takes milliseconds, and for each worker.
TIMED, TIMED_WORKERS = 16, 4


class Batches(Dataset[list[Tensor]]):
    """The views of the same photographs again and again, a batch an item, without end."""

    def __init__(self, make: Maker, given: Photographs) -> None:
        self.make, self.given = make, given

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, _: int) -> list[Tensor]:
        return self.make(self.given)


def in_threads(make: Maker, given: Photographs, threads: int) -> Iterator[list[Tensor]]:
    """Batches without end by so many threads of this process."""
    while True:
        torch.set_num_threads(threads)
        yield make(given)


def in_workers(make: Maker, given: Photographs, workers: int) -> Iterator[list[Tensor]]:
    """Batches without end by workers of a DataLoader; they end with the iterator."""
    yield from DataLoader(Batches(make, given), batch_size=None, num_workers=workers, multiprocessing_context="fork")


def a_batch(batches: Iterator[list[Tensor]], ready: int, timed: int) -> float:
    """Seconds of the clock for a batch, after those that can be ready before."""
    for _ in range(ready):
        next(batches)
    began = time.perf_counter()
    for _ in range(timed):
        next(batches)
    return (time.perf_counter() - began) / timed


def measure_threads(workload: Workload, given: Photographs, threads: int) -> dict[str, list[float]]:
    """Seconds of the clock a batch, by who makes it with how many threads or workers, a round each in turns."""
    before, own = torch.get_num_threads(), ours(workload.slots)
    makers: dict[str, Callable[[], Iterator[list[Tensor]]]] = {
        f"{OURS}, {count}": partial(in_threads, own, given, count) for count in (1, threads)
    }
    for name in IN_WORKERS:
        makers[name] = partial(in_workers, MAKERS[name](workload.slots), given, threads)
    times: dict[str, list[float]] = {name: [] for name in makers}
    for round_ in range(1 + ROUNDS):
        for name, batches in makers.items():
            timed = threads * (TIMED_WORKERS if name in IN_WORKERS else TIMED)
            seconds = a_batch(batches(), 2 * threads, timed)  # a worker has two batches ready
            if round_:
                times[name].append(seconds)
    torch.set_num_threads(before)
    return times


def threads_table(found: dict[str, Any]) -> str:
    """Markdown: how many times longer than with all threads one takes, and peers with as many workers."""
    threads = found["threads"]
    names = {f"{OURS}, 1": "one thread", **{name: f"{name}, {threads} workers" for name in IN_WORKERS}}
    rows = [[f"views, against {threads} threads", *names.values()], ["---"] * (len(names) + 1)]
    for workload, times in found["seconds"].items():
        rows.append([workload, *(_ratios(times[name], times[f"{OURS}, {threads}"], 2) for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _ratios(theirs: Sequence[float], own: Sequence[float], digits: int = 1) -> str:
    """Median (lowest to highest) of ratios by round."""
    ratios = [their / mine for their, mine in zip(theirs, own, strict=True)]
    return f"{statistics.median(ratios):.{digits}f} ({min(ratios):.{digits}f} to {max(ratios):.{digits}f})"


# --- all of it --------------------------------------------------------------------------------------------------------


def install_peers(folder: Path) -> None:
    """Install the peers into a folder, once, and let Python find them after everything else."""
    if not (folder / ".installed").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *PEERS]
        subprocess.run(command, check=True)
        (folder / ".installed").touch()
    sys.path.append(str(folder))


def table(found: dict[str, Any]) -> str:
    """Markdown: a row a workload, how many times longer each peer takes."""
    names = [name for name in MAKERS if name != OURS]
    rows = [["views", *names], ["---"] * (len(names) + 1)]
    for name, times in found["seconds"].items():
        rows.append([name, *(_ratios(times[peer], times[OURS]) if peer in times else "" for peer in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def compare(arguments: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """All workloads on one thread; the name of the file, and what goes into it."""
    install_peers(arguments.work / "peers")
    laws = check_laws()
    seconds = {one.name: measure(one, source(one, folder)) for one in WORKLOADS}
    return "speed", {"peers": PEERS, "threads": 1, "rounds": ROUNDS, "laws": laws, "seconds": seconds}


def compare_threads(arguments: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """The workloads of `PARALLEL` on several threads; the name of the file, and what goes into it."""
    seconds = {
        one.name: measure_threads(one, source(one, folder)(), arguments.threads)
        for one in WORKLOADS
        if one.name in PARALLEL
    }
    return "speed_threads", {"threads": arguments.threads, "rounds": ROUNDS, "seconds": seconds}


TABLES = {"speed": table, "speed_threads": threads_table}


def main() -> None:
    parser = places(__doc__, "speed.md")
    parser.add_argument("--threads", type=int, default=1, help="with 2 and more: only those, against as many workers")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        unpack_once(arguments.archives / "imagenette128.tar", arguments.work)
        folder = arguments.work / "imagenette128" / "train"
        about = {"machine": machine(), "load": os.getloadavg()}
        name, found = (compare if arguments.threads < 2 else compare_threads)(arguments, folder)
        path = arguments.results / f"{name}.json"
        path.write_text(json.dumps({**about, **found}, indent=1) + "\n")
        print(f"written: {path}", flush=True)
    for name, text_of in TABLES.items():
        path = arguments.results / f"{name}.json"
        if path.exists():
            write_between(arguments.page, name, "speed.py", text_of(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
