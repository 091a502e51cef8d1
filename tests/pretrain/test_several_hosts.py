"""Two hosts, each with its own network, train one run over their own addresses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import pretrain, words, write_photos

from tiny import free_port, losses_of

SETTINGS = {"train__steps": 12, "backbone__drop_path": 0.0, "train__checkpoint_minutes": 5}


def ip(*arguments: str) -> bool:
    """`ip ARGUMENTS`; whether it could be done."""
    return subprocess.run(["ip", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Network namespaces with a cable between them, name -> address; skips where making them is not allowed.

    What `ip netns exec` runs in one of them finds /etc/netns/NAME/hosts as its /etc/hosts: they know both by name.
    """
    names = [f"belvedere{os.getpid()}{side}" for side in "ab"]
    addresses = {name: f"10.77.{os.getpid() % 256}.{1 + place}" for place, name in enumerate(names)}
    ends = [f"v{os.getpid()}{side}" for side in "ab"]
    made = all(ip("netns", "add", name) for name in names) and ip(
        "link", "add", ends[0], "type", "veth", "peer", ends[1]
    )
    try:
        if not made:
            pytest.skip("network namespaces need root")
        known = "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
        for name, end in zip(names, ends, strict=True):
            Path("/etc/netns", name).mkdir(parents=True)
            Path("/etc/netns", name, "hosts").write_text(known)
            inside = ("-n", name)
            assert ip("link", "set", end, "netns", name)
            assert ip(*inside, "link", "set", end, "name", "cable")
            assert ip(*inside, "address", "add", f"{addresses[name]}/24", "dev", "cable")
            assert all(ip(*inside, "link", "set", device, "up") for device in ("lo", "cable"))
        yield addresses
    finally:
        for name in names:
            ip("netns", "del", name)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


@pytest.mark.slow
def test_two_hosts_are_one_run(hosts: dict[str, str], tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 39)
    alone = pretrain(photos, tmp_path / "alone", **SETTINGS)
    assert alone.wait() == 0, alone.output
    first, port = next(iter(hosts)), free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
    # As docs/scaling.md says it: the same command on each.
    launcher = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-id=1", f"--rdzv-endpoint={first}:{port}"]
    processes = []
    for name in hosts:
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
        job = ["-m", "belvedere", "pretrain", str(photos), "--recipe", "dino", "--out", str(tmp_path / "two")]
        command = [sys.executable, "-m", "torch.distributed.run", *launcher, "--nproc-per-node=1", *job]
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *named, *command, *words(**SETTINGS)],
                env=environment | {"BELVEDERE_CACHE": str(tmp_path / f"cache_{name}")},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=250)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sum(text.count("report: ") for text in said) == 1
    one, two = losses_of(tmp_path / "alone"), losses_of(tmp_path / "two")
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-4)
    assert one != two, "sums of two processes round differently, so this was one process"
