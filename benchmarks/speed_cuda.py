"""How fast the views are made on a CUDA device: milliseconds a batch, beside kornia's, a network and the bytes to move.

    python benchmarks/speed_cuda.py                       # four workloads of 256 photographs, a few minutes
    python benchmarks/speed_cuda.py --table               # only write docs/speed.md anew
    TRITON_INTERPRET=1 python benchmarks/speed_cuda.py --device cpu --images 2 --only "simclr 2x32"     # a trial

Photographs lie on the device as uint8, normalised views stay there. Everybody has 20 batches to warm up and 100 timed
between two events, in three rounds in turns, of which the median counts. "drawn" is everything a training step asks
for: parameters drawn on the host, sent, and pixels; "replayed" is a CUDA graph of the kernels alone. The floor is what
must be moved (18 bytes a pixel of a view, and the photograph once) at the bandwidth of a copy that is measured in the
same run; a share of 20 % means five times as long as it. kornia is installed into runs/benchmarks/peers; without it,
its column is left out and said to be. Writes benchmarks/results/speed_cuda.json and a table of docs/speed.md; a trial
prints the table and writes no more than the file, below --work.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

import speed
from belvedere.views.render import Backend, render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot
from belvedere.views.views import runs
from cifar_runs import ROOT, machine, write_between

WARM, TIMED, ROUNDS = 20, 100, 3
CHOSEN = ("simclr 2x32", "dino 2x96+6x40", "simclr 2x224", "dino 2x224+8x96")
NORMAL = {"mean": speed.MEAN, "std": speed.STD}
NETWORK = "ViT-S/16 forward, bfloat16"
Batch = Callable[[], object]


def photographs(count: int, side: int, device: torch.device) -> Tensor:
    """uint8 `[count, side, side, 3]` on the device."""
    pictures = (Image.open(io.BytesIO(file)).convert("RGB") for file in speed.jpegs(count))
    scaled = [np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(scaled)).to(device)


def drawn(images: Tensor, slots: Sequence[Slot], backend: Backend, dtype: torch.dtype) -> Batch:
    """Parameters and pixels, as a training step has them made."""
    sizes, epochs = np.tile(images.shape[1:3], (len(images), 1)), itertools.count()

    def make() -> object:
        params = sample_views(tuple(slots), np.arange(len(images)), sizes, next(epochs), 0)
        return render_views(images, params, **NORMAL, backend=backend, dtype=dtype)

    return make


def replayed(images: Tensor, slots: Sequence[Slot], dtype: torch.dtype) -> Batch:
    """The kernels alone: a CUDA graph of them where there is CUDA."""
    from belvedere.views import kernels

    sizes = np.tile(images.shape[1:3], (len(images), 1))
    params = sample_views(tuple(slots), np.arange(len(images)), sizes, 0, 0)
    mean, std = (torch.tensor(values) for values in NORMAL.values())
    constants = (1 / (255 * std), mean / std)
    groups = [
        (kernels.sent(params, run, *constants, images.device, coloured=True), params.size[run[0]])
        for run in runs(params)
    ]

    def launch() -> object:
        return [kernels.launch(images, record, size, dtype) for record, size in groups]

    if images.device.type != "cuda":
        return launch
    launch()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = launch()
    return lambda: (graph.replay(), kept, groups)  # which the graph reads from where they are


def kornia(images: Tensor, slots: Sequence[Slot]) -> Batch:
    """The peer's own pipeline on the same device."""
    make = speed.kornia(slots)
    return lambda: make(images)


def forward(images: Tensor, slots: Sequence[Slot]) -> Batch:
    """ViT-S/16 without gradients over the workload's global views, in bf16: what views should be small beside."""
    network = timm.create_model("vit_small_patch16_224", img_size=slots[0].size).to(images.device, torch.bfloat16)
    globals_ = [slot for slot in slots if slot.size == slots[0].size]
    views = torch.randn(len(globals_) * len(images), 3, *slots[0].size, device=images.device, dtype=torch.bfloat16)

    @torch.no_grad()
    def make() -> object:
        return network.forward_features(views)

    return make


def milliseconds(make: Batch, device: torch.device, warm: int, timed: int) -> float:
    """Of one batch, by the device's own events (on a CPU by the clock)."""
    for _ in range(warm):
        make()
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(timed):
            make()
        return 1000 * (time.perf_counter() - began) / timed
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(timed):
        make()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / timed


def bandwidth(device: torch.device, warm: int, timed: int) -> float:
    """Bytes a second of a copy: read and written."""
    source = torch.empty(1 << (30 if device.type == "cuda" else 24), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source), device, warm, timed) / 1000)


def floor(slots: Sequence[Slot], images: Tensor, bytes_a_second: float) -> float:
    """Milliseconds a batch takes if nothing but its bytes counts."""
    pixels = sum(slot.size[0] * slot.size[1] for slot in slots)
    return 1000 * len(images) * (18 * pixels + images[0].numel()) / bytes_a_second


def measure(slots: Sequence[Slot], images: Tensor, warm: int, timed: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a batch by what makes it, every round, and the peak of memory in MiB."""
    makers: dict[str, Batch] = {
        "triton, replayed, bfloat16": replayed(images, slots, torch.bfloat16),
        "triton, drawn, bfloat16": drawn(images, slots, "triton", torch.bfloat16),
        "triton, drawn, float32": drawn(images, slots, "triton", torch.float32),
        "eager, drawn, bfloat16": drawn(images, slots, "eager", torch.bfloat16),
        "eager, drawn, float32": drawn(images, slots, "eager", torch.float32),
    }
    if find_spec("kornia"):
        makers["kornia, float32"] = kornia(images, slots)
    else:
        print("kornia is not installed: without its column")
    if slots[0].size[0] >= 96:
        makers[NETWORK] = forward(images, slots)
    times, memory = {name: list[float]() for name in makers}, dict[str, float]()
    for _ in range(rounds):
        for name, make in makers.items():
            if images.is_cuda:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            times[name].append(milliseconds(make, images.device, warm, timed))
            if images.is_cuda:
                memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {"milliseconds": times, "peak_mib": memory}


def floor_shares(row: dict[str, Any]) -> dict[str, float]:
    """How near each maker of views comes to the floor: 1 if nothing but its bytes took time."""
    medians = {name: statistics.median(times) for name, times in row["milliseconds"].items() if name != NETWORK}
    return {name: row["floor_milliseconds"] / median for name, median in medians.items()}


def table(found: dict[str, Any]) -> str:
    """Markdown: a row a workload, milliseconds a batch and the share of the floor by who makes it."""
    rows = found["workloads"]
    makers = list(dict.fromkeys(name for row in rows.values() for name in row["milliseconds"]))
    lines = [[f"views of {found['images']} images", "floor", *makers], ["---"] * (2 + len(makers))]
    for workload, row in rows.items():
        lines.append([workload, f"{row['floor_milliseconds']:.2f} ms", *(_cell(row, name) for name in makers)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: dict[str, Any], name: str) -> str:
    if name not in row["milliseconds"]:
        return ""
    share = row["floor_share"].get(name)
    return f"{statistics.median(row['milliseconds'][name]):.2f} ms" + ("" if share is None else f" ({share:.1%})")


def compare(arguments: argparse.Namespace, device: torch.device, out: Path) -> None:
    """Measure the workloads, each written into the file as soon as it is there."""
    warm, timed, rounds = (WARM, TIMED, ROUNDS) if device.type == "cuda" else (0, 1, 1)
    rate = bandwidth(device, warm, timed)
    found: dict[str, Any] = {
        "machine": machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, kernels interpreted",
        "copy_gb_a_second": rate / 1e9,
        "images": arguments.images,
        "workloads": {},
    }
    for workload in speed.WORKLOADS:
        if workload.name not in CHOSEN or arguments.only not in (None, workload.name):
            continue
        assert workload.side is not None, "those of JPEG files are the processor's"
        images = photographs(arguments.images, workload.side, device)
        row = measure(workload.slots, images, warm, timed, rounds)
        row["floor_milliseconds"] = floor(workload.slots, images, rate)
        row["floor_share"] = floor_shares(row)
        found["workloads"][workload.name] = row
        out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"written: {out}: {workload.name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--only", choices=CHOSEN, help="one workload")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--out", type=Path, help="in place of benchmarks/results/speed_cuda.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "speed.md")
    parser.add_argument("--table", action="store_true", help="only write docs/speed.md from the results there are")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    trial = device.type == "cpu"
    results = arguments.work if trial else ROOT / "benchmarks" / "results"
    out = arguments.out or results / "speed_cuda.json"
    if not arguments.table:
        if not trial and not torch.cuda.is_available():
            parser.error("there is no CUDA device here; with TRITON_INTERPRET=1, --device cpu tries the script")
        if trial and os.environ.get("TRITON_INTERPRET") != "1":
            parser.error("--device cpu needs TRITON_INTERPRET=1 in the environment")
        if not trial:
            try:
                speed.install_peers(arguments.work / "peers")
            except subprocess.CalledProcessError:
                print("kornia cannot be installed")
        out.parent.mkdir(parents=True, exist_ok=True)
        compare(arguments, device, out)
    text = table(json.loads(out.read_text()))
    if trial:
        print(text)
    else:
        write_between(arguments.page, "speed_cuda", "speed_cuda.py", text)


if __name__ == "__main__":
    main()
