"""When a batch does not fit into memory: which one does is measured, and the user decides; nothing changes silently."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from belvedere.errors import UserError
from belvedere.pretrain.feed import Feed, MicroBatch
from belvedere.pretrain.trainer import StepReport, Trainer


def step_or_refuse(
    trainer: Trainer, feed: Feed, step: int, micro_batches: Sequence[MicroBatch], detail: bool = False
) -> StepReport:
    """`trainer.step`, for batches that may be too large.

    Raises:
        UserError: when memory did not suffice, with the largest number of images (halving) that was found to fit. The
            trainer's weights are those of no run then.
    """
    try:
        return trainer.step(step, micro_batches, detail)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        told = next(iter(str(error).splitlines()), type(error).__name__)
    at_a_time, device = max(len(index) for index, _ in micro_batches), trainer.fabric.device
    message = f"train.batch={feed.batch}: {at_a_time} images at a time do not fit into the memory of {device} ({told})"
    if trainer.fabric.world_size > 1:  # measuring needs all processes, and some went on
        raise UserError(f"{message}; make train.batch smaller, or train.accumulate larger{_or_recompute(trainer)}")
    fitting = _largest_that_fits(trainer, step, micro_batches[0])
    if not fitting:
        raise UserError(f"{message}, nor do 2; make views.size or the backbone smaller{_or_recompute(trainer)}")
    parts = -(-feed.batch // fitting)
    raise UserError(
        f"{message}; {fitting} do, measured: give train.batch={fitting}, or train.accumulate={parts}, "
        f"which keeps the batch and looks at a part of it at a time{_or_recompute(trainer)}"
    )


def _or_recompute(trainer: Trainer) -> str:
    can = trainer.parts.student.backbone.shardable and not trainer.config.train.recompute
    return "; train.recompute=true takes less memory and more time" if can else ""


def _is_out_of_memory(error: BaseException) -> bool:
    # Torch has a kind of its own for it only where its CUDA allocator asked: not on the CPU, on MPS, or in a library.
    words = ("out of memory", "DefaultCPUAllocator", "bad_alloc", "STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


@contextmanager
def enough_for(what: str, advice: str) -> Iterator[None]:
    """Around code that no setting of the batch makes smaller; `what` does not fit, and `advice` what to do about it.

    Raises:
        UserError: when memory did not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        told = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{what} does not fit into memory ({told}); {advice}") from error


def _largest_that_fits(trainer: Trainer, step: int, micro_batch: MicroBatch) -> int:
    """Images of this micro-batch, halved until a whole optimiser step is done; 0 when two are too many."""
    index, images = micro_batch
    count = len(index) // 2
    while count >= 2:
        trainer.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if trainer.fabric.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            trainer.step(step, [(index[:count], images[:count])])
            return count
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        count //= 2
    return 0
