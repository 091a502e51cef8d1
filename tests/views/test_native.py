"""The compiled renderer: equal to the reference, the same bits whatever the batch and threads, and dispensable."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from view_helpers import plain, psnr

from belvedere.views import native
from belvedere.views.operations import Operation, Space, space
from belvedere.views.params import ViewParams
from belvedere.views.program import OperationProgram, draw, with_program
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot, ViewSettings, build_slots

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="there is no C++ compiler")


def in_unit(images: Tensor | list[Tensor], params: ViewParams, backend: str) -> list[Tensor]:
    """Views in [0, 1], a tensor a slot."""
    channels = images[0].shape[-1]
    views = render_views(images, params, mean=(0.0,) * channels, std=(1.0,) * channels, backend=backend)
    return [views[name] for name in params.slots]


def differ(params: ViewParams, got: list[Tensor], expected: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """What each slot shows where nothing is solarized: a pixel within rounding of the threshold may fall either way."""
    for v, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert ((a - b).abs() > 1e-4).float().mean() <= 2e-5
        plain_ones = params.solarize[v] > 1
        yield a[plain_ones], b[plain_ones]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "local"), [((40, 36), (18, 20)), ((97, 130), (7, 64))])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_operation_equals_the_reference(
    channels: int, size: tuple[int, int], local: tuple[int, int], interpolation: str, photos: Tensor
) -> None:
    settings = ViewSettings(
        size,
        locals=1,
        local_size=local,
        interpolation=interpolation,
        jitter=(0.8, 0.8, 0.8, 0.5),
        blur_p=(0.5,) * 3,
        solarize_p=(0.3,) * 3,
    )
    images = torch.cat([photos, photos], -1)[..., :channels].contiguous().repeat(4, 1, 1, 1)
    record = sample_views(build_slots(settings, channels), range(32), [images.shape[1:3]] * 32, 0, 1)
    got, expected = in_unit(images, record, "native"), in_unit(images, record, "reference")
    for a, b in differ(record, got, expected):
        assert psnr(a, b) >= 95
        assert (a - b).abs().max() <= 2e-4


def programmed(photos: Tensor, size: tuple[int, int], op: Tensor, seed: int = 0) -> ViewParams:
    """Views of whole images that go through these operations `[N, S]`, with magnitudes and signs of their own."""
    record = plain(photos, size)
    numbers = draw(
        sample_views([Slot("v", size, (1.0, 1.0))], range(len(photos)), [photos.shape[1:3]] * len(photos), 0, seed),
        op.shape[1],
    )
    return with_program(record, op[None], numbers.amount, numbers.sign)


class Uncompiled(OperationProgram):
    """The crops are the compiled renderer's, the operations torch's."""

    def compiles(self, params: ViewParams) -> bool:
        return False


def both(photos: Tensor, record: ViewParams, operations: Sequence[Operation]) -> tuple[Tensor, Tensor]:
    """Views in [0, 1] as compiled code and as plain torch make them."""
    channels = photos.shape[-1]
    unit: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels, "backend": "native"}
    programs = (kind(operations) for kind in (OperationProgram, Uncompiled))
    got, expected = (render_views(photos, record, **unit, program=program)["v"] for program in programs)
    return got, expected


@pytest.mark.parametrize("name", ["ssl12", "autoaugment"])
@pytest.mark.parametrize("size", [(40, 36), (33, 70)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_operation_of_a_program_equals_plain_torch(
    channels: int, size: tuple[int, int], name: Space, photos: Tensor
) -> None:
    operations = space(name, channels)
    photos = torch.cat([photos, photos], -1)[..., :channels].contiguous()
    for position, operation in enumerate(operations):
        record = programmed(photos, size, torch.full((len(photos), 1), position))
        got, expected = both(photos, record, operations)
        wrong = (got - expected).abs() > 2e-5
        # A pixel within rounding of a step may fall either way.
        assert wrong.float().mean() <= (2e-4 if operation.name in {"solarize", "posterize", "equalize"} else 0)
        assert torch.equal(got, in_unit(photos, replace(record, extras={}), "native")[0]) == (
            operation.name == "identity"
        )


@given(
    op=st.lists(st.tuples(*[st.integers(-1, 11)] * 3), min_size=8, max_size=8),
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    seed=st.integers(0, 1 << 20),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_program_equals_plain_torch(
    op: list[tuple[int, ...]], size: tuple[int, int], seed: int, photos: Tensor
) -> None:
    got, expected = both(photos, programmed(photos, size, torch.tensor(op), seed), space("ssl12", 3))
    assert got.min() >= 0
    assert got.max() <= 1 + 1e-6  # a level of 255, times 1 / 255
    # One level that rounds the other way moves the ranks of all.
    assert (got - expected).abs().mean() <= 2e-3


def test_programs_have_the_same_bits_whatever_the_batch_and_the_threads(photos: Tensor) -> None:
    record = programmed(photos, (40, 36), torch.arange(16).view(8, 2) % 12)
    operations = space("ssl12", 3)
    whole = both(photos, record, operations)[0]
    torch.set_num_threads(3)
    try:
        assert torch.equal(both(photos, record, operations)[0], whole)
    finally:
        torch.set_num_threads(1)
    order = torch.tensor([5, 2, 7])
    assert torch.equal(both(photos[order], record.take(order), operations)[0], whole[order])


def test_an_operation_that_compiled_code_does_not_know_is_plain_torch_s(photos: Tensor) -> None:
    half = Operation("brightness", lambda x, m, sign: x / 2)
    got, expected = both(photos, programmed(photos, (24, 20), torch.zeros(8, 1).long()), [half])
    assert (got - expected).abs().max() <= 1e-5
    assert got.max() <= 0.5


def test_magnitudes_that_are_not_numbers_are_refused(photos: Tensor) -> None:
    record = programmed(photos, (24, 20), torch.zeros(8, 1).long())
    record.extras["magnitude"][0, 3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        both(photos, record, space("ssl12", 3))


@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 1 << 20),
)
def test_any_box_of_any_image_equals_the_reference(source: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (2, *source, 3), dtype=np.uint8)
    slot = Slot("v", size, (0.01, 1.0), blur_p=0.5, jitter=(0.4, 0.4, 0.4, 0.5))
    record = sample_views([slot], range(2), [source] * 2, 0, seed)
    images = torch.from_numpy(noise)
    for a, b in differ(record, in_unit(images, record, "native"), in_unit(images, record, "reference")):
        assert (a - b).abs().max() <= 5e-4


def test_a_learned_box_may_have_fractional_ends(photos: Tensor) -> None:
    record = plain(photos, (33, 47))
    moved = {"top": 7.3, "left": 2.25, "h": 51.9, "w": 70.6}
    record = replace(record, **{name: torch.full((1, len(photos)), value) for name, value in moved.items()})
    (got,), (expected,) = in_unit(photos, record, "native"), in_unit(photos, record, "reference")
    assert (got - expected).abs().max() <= 1e-5


def test_the_same_bits_whatever_the_batch_and_the_threads(photos: Tensor, drawn: ViewParams) -> None:
    whole = in_unit(photos, drawn, "native")
    torch.set_num_threads(3)
    try:
        threads = in_unit(photos, drawn, "native")
    finally:
        torch.set_num_threads(1)
    order = torch.tensor([5, 2, 7, 0])
    some = in_unit(photos[order], drawn.take(order), "native")
    listed = in_unit([photo.clone() for photo in photos], drawn, "native")
    wider = torch.nn.functional.pad(photos, (0, 0, 3, 5))
    strided = in_unit(wider[:, :, 3:-5], drawn, "native")
    planar = in_unit(photos.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), drawn, "native")
    for a, b, c, *others in zip(whole, threads, some, listed, strided, planar, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[order], c)
        assert all(torch.equal(a, other) for other in others)


def test_the_users_default_type_decides_nothing(photos: Tensor, drawn: ViewParams) -> None:
    expected = in_unit(photos, drawn, "native")
    torch.set_default_dtype(torch.float64)
    try:
        got = in_unit(photos, drawn, "native")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_box_outside_of_its_image_is_refused(photos: Tensor, drawn: ViewParams) -> None:
    left = drawn.left.clone()
    left[2, 5] = photos.shape[2]
    with pytest.raises(ValueError, match="view 5 of slot local_1 leaves its image"):
        in_unit(photos, replace(drawn, left=left), "native")
    # One pixel high between the centres of two pixels: there is nothing to show.
    top, h = (getattr(drawn, name).float().clone() for name in ("top", "h"))
    top[0, 2], h[0, 2] = 0.5, 1.0
    with pytest.raises(ValueError, match=r"view 2 of slot global_a .* holds none of its pixels"):
        in_unit(photos, replace(drawn, top=top, h=h), "native")
    for number in (float("nan"), float("inf")):
        sigma = drawn.sigma.clone()
        sigma[1, 1] = number
        with pytest.raises(ValueError, match="not finite"):
            in_unit(photos, replace(drawn, sigma=sigma), "native")


def test_a_wide_blur_ends_at_the_border(photos: Tensor) -> None:
    record = plain(photos, (24, 20))
    record = replace(record, sigma=torch.full_like(record.sigma, 1e12))
    (got,), (expected,) = in_unit(photos, record, "native"), in_unit(photos, record, "reference")
    assert (got - expected).abs().max() <= 1e-4


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """As in a fresh process with an empty cache."""
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path))
    native.library.cache_clear()
    yield monkeypatch
    native.library.cache_clear()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_without_a_compiler_one_line_and_plain_torch(
    anew: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, photos: Tensor, drawn: ViewParams
) -> None:
    anew.setattr(native, "COMPILERS", ("no-such-compiler",))
    anew.delenv("CXX", raising=False)
    expected = in_unit(photos, drawn, "eager")
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(in_unit(photos, drawn, "auto"), expected, strict=True))
    (line,) = said(caplog)
    assert "there is no C++ compiler" in line
    with pytest.raises(ValueError, match="native"):
        in_unit(photos, drawn, "native")


def test_a_compiler_that_fails_is_quoted(
    anew: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    script = tmp_path / "cc"
    script.write_text("#!/bin/sh\necho 'out of ideas' >&2\nexit 1\n")
    script.chmod(0o755)
    anew.setenv("CXX", f"{script} --with words")
    assert native.library() is None
    assert f"{script} --with words said 'out of ideas'" in said(caplog)[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cc"]


def test_switched_off_says_nothing(anew: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    anew.setenv("BELVEDERE_NATIVE", "0")
    assert native.library() is None
    assert not said(caplog)
    assert not list(tmp_path.iterdir())


def test_compiled_once(anew: pytest.MonkeyPatch, tmp_path: Path) -> None:
    anew.chdir(tmp_path)
    anew.setenv("BELVEDERE_CACHE", ".")
    assert native.library() is not None
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o700
    native.library.cache_clear()
    anew.setattr(native.subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert native.library() is not None
    assert list(tmp_path.iterdir()) == [file]


def test_a_damaged_library_is_made_again(anew: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = native._compiled()
    made.write_bytes(b"half of it")
    assert native.library() is not None
    assert made.stat().st_size > 1000


@pytest.mark.parametrize(("stranger", "mode"), [(1, 0o700), (0, 0o777)])
def test_a_library_that_others_could_change_is_not_run(
    stranger: int, mode: int, anew: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (file,) = [native._compiled()]
    about = os.stat_result((mode, 0, 0, 1, os.getuid() + stranger, 0, 0, 0, 0, 0))
    anew.setattr(native.Path, "stat", lambda path, **_: about)
    assert native.library() is None
    assert f"{file} belongs to another user" in said(caplog)[0]
