"""What cutting large images costs, and the picture of docs/large_images.md.

    python benchmarks/large_images.py            # a minute; writes benchmarks/results/large_images.json
    python benchmarks/large_images.py --picture  # writes docs/tiles.png

Every kind of file holds one picture of 20,000 x 20,000 RGB pixels (the JPEG and the PNG, which are read whole, one of
10,000 x 10,000) and is cut into tiles of 512 px on one thread, in a process of its own: seconds until the index is
there, milliseconds a tile over the first three rows of tiles and the last, and the growth of the process's peak memory
from before the index.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import tifffile
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from skimage import data

from belvedere.images.cutting import Cutting
from belvedere.images.decode import decode
from belvedere.images.limits import EMPTY, set_aside
from belvedere.images.source import find_images
from belvedere.images.tiles import corners, cut

ROOT = Path(__file__).parents[1]
KINDS = ("npy", "plain", "tiled", "strips", "jpeg", "png")
TILE = 512
SIDE = 20_000
ROWS = 3


def huge(folder: Path, kind: str, side: int = SIDE) -> None:
    """Write a picture of side x side RGB pixels in a small or sparse file; all compressed segments are the same."""
    if kind == "npy":
        np.lib.format.open_memmap(folder / "slide.npy", "w+", np.uint8, (side, side, 3))[:512, :512] = 7
    elif kind == "plain":
        pixels = tifffile.memmap(folder / "slide.tif", shape=(side, side, 3), dtype=np.uint8, photometric="rgb")
        pixels[:512, :512] = 7
    elif kind in ("jpeg", "png"):
        pixels = np.tile(photograph(500, 500), (side // 500, side // 500, 1))
        Image.fromarray(pixels).save(folder / f"slide.{kind}", compress_level=1)
    else:
        write_tiff(folder / "slide.tif", side, tiled=kind == "tiled")


def photograph(height: int, width: int) -> np.ndarray:
    """So many pixels of tissue (skimage's `immunohistochemistry`), repeated where it is too small."""
    picture = np.asarray(data.immunohistochemistry())
    return np.tile(picture, (-(-height // 512), -(-width // 512), 1))[:height, :width]


def write_tiff(path: Path, side: int, tiled: bool) -> None:
    """A deflated RGB TIFF in which all tiles (or all strips but a shorter last one) are one segment of data.

    TIFF 6.0, section 2: header, data, values that do not fit into their entry, entries; all numbers are 32-bit here.
    """
    height, width = (256, 256) if tiled else (64, side)
    count = -(-side // height) * -(-side // width)
    segment = zlib.compress(photograph(height, width).tobytes())
    short = 0 if tiled else side % height
    last = zlib.compress(photograph(short, width).tobytes()) if short else b""
    place = {322: [width], 323: [height]} if tiled else {278: [height]}
    offsets, lengths = (324, 325) if tiled else (273, 279)
    tags = {256: [side], 257: [side], 258: [8, 8, 8], 259: [8], 262: [2], 277: [3], **place}
    places, sizes = [8] * count, [len(segment)] * count
    if short:
        places[-1], sizes[-1] = 8 + len(segment), len(last)
    tags |= {offsets: places, lengths: sizes}
    data = segment + last
    body, entries = data + b"\0" * (len(data) % 2), b""
    for tag, values in sorted(tags.items()):
        packed = np.array(values, "<u4").tobytes()
        if len(values) > 1:
            packed, body = struct.pack("<I", 8 + len(body)), body + packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    header = struct.pack("<2sHI", b"II", 42, 8 + len(body))
    path.write_bytes(header + body + struct.pack("<H", len(tags)) + entries + b"\0" * 4)


def measure(folder: Path) -> dict[str, float]:
    """Index a folder's one picture and read the first rows of tiles and the last."""
    before, start = peak(), time.perf_counter()
    tiles = cut(find_images(folder), Cutting(TILE), workers=1, progress=False)
    indexed, across = time.perf_counter(), round(len(tiles) ** 0.5)
    rows = [*range(ROWS * across), *range(len(tiles) - across, len(tiles))]
    for i in rows:
        assert decode(tiles.read(i), 3).shape == (TILE, TILE, 3)
    done = time.perf_counter()
    return {
        "tiles": len(tiles),
        "index_seconds": round(indexed - start, 4),
        "ms_a_tile": round(1000 * (done - indexed) / len(rows), 2),
        "peak_mib": round((peak() - before) / 1024),
    }


def peak() -> int:
    """Largest resident memory of this process so far, KiB; getrusage would begin with that of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure_all() -> None:
    """Measure every kind and write the results."""
    from cifar_runs import machine

    found = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory(prefix="belvedere-") as folder:
            huge(Path(folder), kind, SIDE // 2 if kind in ("jpeg", "png") else SIDE)
            command = [sys.executable, __file__, "--measure", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[kind] = json.loads(done.stdout)
        print(kind, found[kind], flush=True)
    path = ROOT / "benchmarks" / "results" / "large_images.json"
    path.write_text(json.dumps({"machine": machine(), "tile": TILE, "kinds": found}, indent=1) + "\n")


def draw(path: Path, tile: int = 192) -> None:
    """Draw a picture with the tiles that it is cut into; empty ones are crossed out."""
    picture = np.asarray(data.retina())
    figure = Figure(figsize=(5, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture)
    for number, (y, x) in enumerate(corners(picture.shape[:2], Cutting(tile))):
        pixels = picture[y : y + tile, x : x + tile]
        empty = set_aside(pixels.shape[:2], pixels, tile, 8, Cutting(tile), is_part=True) == EMPTY
        colour = "#e4574f" if empty else "#7fb2ff"
        axes.add_patch(Rectangle((x + 4, y + 4), tile - 8, tile - 8, fill=False, edgecolor=colour, linewidth=1.2))
        label = "empty" if empty else f"{number}"
        axes.text(x + 16, y + 16, label, color=colour, fontsize=7, va="top")
    axes.set_axis_off()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", action="store_true")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
    elif arguments.picture:
        draw(ROOT / "docs" / "tiles.png")
    else:
        measure_all()


if __name__ == "__main__":
    main()
