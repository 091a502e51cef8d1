"""Memory stays flat when the gallery grows tenfold: the peak of a process of its own, less what the gallery takes."""

from __future__ import annotations

import subprocess
import sys

import pytest

# The peak of resident memory, which torch's allocations are in; in KiB on Linux. Not counted are the gallery itself,
# which is the caller's, and its normalised copy.
MEASURE = """
import resource, sys
import numpy as np, torch
from belvedere.measure import knn, twins
torch.set_num_threads(1)
rows, job = int(sys.argv[1]), sys.argv[2]
rng = torch.Generator().manual_seed(0)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
if job == "knn":
    train, test = torch.randn(rows, 4, generator=rng), torch.randn(256, 4, generator=rng)
    own = 2 * train.numel() * 4 / 2**20
    knn.top_neighbours(train[:1000], test, 10)
    before = peak()
    found = knn.top_neighbours(train, test, 10)[1]
else:
    dct = torch.where(torch.rand(rows, 64, generator=rng) < 0.5, -1.0, 1.0)
    cells = torch.nn.functional.normalize(torch.randn(rows, 16, generator=rng), dim=1)
    looks = twins.Looks(np.arange(rows).astype("S32"), np.arange(rows).astype(np.uint64), dct, cells)
    asked = twins.Looks(looks.pixels[:256], looks.average[:256], dct[:256], cells[:256])
    own = 0
    before = peak()
    found = twins._near(asked, np.arange(256), looks, np.arange(rows), earlier=False)
print(peak() - before - own, len(found))
"""


def grown(job: str, rows: int) -> float:
    """MiB of peak memory beyond the gallery's own."""
    said = subprocess.run(
        [sys.executable, "-c", MEASURE, str(rows), job], capture_output=True, text=True, check=True, timeout=300
    )
    megabytes, found = said.stdout.split()
    assert int(found) == 256
    return float(megabytes)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize("job", ["knn", "twins"])
def test_ten_times_the_gallery_takes_no_more_memory(job: str) -> None:
    small, large = grown(job, 65_536), grown(job, 655_360)
    # All similarities at once would be 64 MiB for the small gallery and 640 MiB for the large.
    assert large < small + 100
    assert large < 400
