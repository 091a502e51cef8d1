"""Memory that a step frees is there for the next one, without asking the system for pages again."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from belvedere.pretrain.allocator import freed_memory_kept

MEGABYTES = 24
PAGES = MEGABYTES * 2**20 // resource.getpagesize()
ROUNDS = 5

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator, on Linux")


def faults() -> int:
    """Pages that this process has been given so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def use_a_block() -> None:
    """Every page of it is written; not aligned as tensors are, because glibc before 2.38 seldom finds those again."""
    bytearray(MEGABYTES * 2**20)


def own_megabytes() -> float:
    """Memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def test_a_block_that_was_freed_is_used_again_and_given_back_at_the_end() -> None:
    with freed_memory_kept():
        use_a_block()
        before = faults()
        for _ in range(ROUNDS):
            use_a_block()
        assert faults() - before < PAGES / 10
        held = own_megabytes()
    assert held - own_megabytes() > 0.9 * MEGABYTES


def test_what_it_holds_is_given_back_after_an_error() -> None:
    before = own_megabytes()

    def fail() -> None:
        with freed_memory_kept():
            use_a_block()
            assert own_megabytes() > before + 0.9 * MEGABYTES
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert own_megabytes() < before + 0.1 * MEGABYTES
