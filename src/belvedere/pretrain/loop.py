"""The loop: steps, looks, checkpoints, and an end that loses nothing."""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from belvedere import config as configuration
from belvedere.backbones.contract import Backbone
from belvedere.config import Config, Resolved
from belvedere.distributed import all_sum
from belvedere.errors import UserError
from belvedere.measure.floors import untrained
from belvedere.measure.monitor import HealthMonitor, Verdict, plain_numbers
from belvedere.pretrain import checkpoint
from belvedere.pretrain.allocator import freed_memory_kept
from belvedere.pretrain.compose import make_encoder
from belvedere.pretrain.feed import Feed
from belvedere.pretrain.folder import RunFolder
from belvedere.pretrain.guard import Guard
from belvedere.pretrain.memory import enough_for, step_or_refuse
from belvedere.pretrain.progress import Progress
from belvedere.pretrain.restore import take_up
from belvedere.pretrain.sharding import whole
from belvedere.pretrain.trainer import StepReport, Trainer
from belvedere.pretrain.watch import Watch


@dataclass
class Loop:
    """A run in motion. `reason` says why it ended early; empty when it finished. `guard` protects given weights."""

    trainer: Trainer
    feed: Feed
    watch: Watch
    folder: RunFolder
    monitor: HealthMonitor
    resolved: Resolved
    guard: Guard | None = None
    start: int = 0
    reason: str = ""

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.resolved.config

    def run(self) -> None:
        """Train from `start` to the last step; every interruption leaves a checkpoint."""
        total, fabric = int(self.config.train.steps), self.trainer.fabric
        look_every = max(1, round(float(self.config.monitor.every) * self.feed.steps_per_epoch))
        leader = fabric.is_global_zero
        progress = Progress(total, self.start, self.feed.batch) if leader else None
        # All processes must ask a sharded network.
        looks = leader or self.trainer.sharded
        if self.start == 0 and looks:
            with self._memory_for_look(0):
                self._look(0, self._floors() if leader else {})
        stream = self.feed.stream(self.start, total)
        saved = time.monotonic()
        with signals_caught() as signals, freed_memory_kept():
            for step in range(self.start, total):
                began = time.monotonic()
                micro_batches = next(stream)
                waited = time.monotonic() - began
                detail = step % self.config.monitor.log_every == 0
                report = step_or_refuse(self.trainer, self.feed, step, micro_batches, detail)
                done = step + 1
                if leader:
                    self._note(step, report, detail, waited, time.monotonic() - began)
                if looks and (done % look_every == 0 or done == total):
                    with self._memory_for_look(done):
                        self._look(done)
                self._decide(signals)
                if self.reason or done == total or self._due(done, saved):
                    self.save(done)
                    saved = time.monotonic()
                if progress is not None:
                    progress.show(done, report.loss, waited, self.monitor.verdict, self._latest)
                if self.reason:
                    if leader:
                        self.folder.log({"step": done, "ended": self.reason})
                    break
        if progress is not None:
            progress.close()

    _latest: dict[str, float] = field(default_factory=dict)
    _fallen: str = ""
    _spent: tuple[float, float] = (0.0, 0.0)
    _began: float = field(default_factory=time.monotonic)

    def _note(self, step: int, report: StepReport, detail: bool, waited: float, seconds: float) -> None:
        scalars = report.scalars | (self.trainer.parts.policy.log() if detail else {})
        self.monitor.step(step, {"loss": report.loss if report.moved else math.nan, **scalars})
        entry = {"step": step, "loss": report.loss, "lr": report.lr, **scalars}
        if not report.moved:  # also where the loss is an ordinary number and only the gradient is not finite
            entry["moved"] = False
        self._spent = self._spent[0] + seconds - waited, self._spent[1] + report.policy_seconds
        if detail:
            entry |= {"weight_decay": report.weight_decay, "seconds": round(seconds, 4), "waited": round(waited, 4)}
            # Over all steps since the last line: a policy need not do the same at each.
            whole, policy = self._spent
            entry["view_cost"] = round(whole / max(1e-9, whole - policy), 4)
            self._spent = 0.0, 0.0
        self.folder.log(entry)
        if not report.moved:
            self.folder.note_not_finite(step, [self.feed.canvases.names[i] for i in self.feed.indices(step)])
        if detail and (verdict := self.monitor.news()) is not None:
            self.folder.log({"step": step, **_told(verdict)})

    def _floors(self) -> dict[str, float]:
        """Raw pixels, and an untrained network where the run's own first look is not one."""
        floors, device = self.watch.floors(), self.trainer.fabric.device
        if floors and self.config.backbone.weights:
            encoder = make_encoder(self.config, self.trainer.evaluated.backbone)
            fresh = untrained(encoder, self.config.train.seed).to(device)
            floors["knn_untrained"] = self.watch.knn(fresh, device)["knn"]
        return floors

    def _look(self, done: int, floors: dict[str, float] | None = None) -> None:
        """How the run is: found by all processes that call this, judged and written down by the leading one."""
        branch = self.trainer.evaluated
        encoder = make_encoder(self.config, branch.backbone)
        features, outputs = self.watch.look(branch, encoder, self.trainer.fabric.device)
        attention = self.watch.attention(encoder, self.trainer.fabric.device)
        knn = self.watch.knn(encoder, self.trainer.fabric.device)
        weights = {} if self.guard is None else whole(branch.backbone.model.state_dict())
        if not self.trainer.fabric.is_global_zero:
            return
        found = self.monitor.probe(done, features[0], features[1], head=outputs[0], attention=attention)
        found = found | knn
        if floors is not None:
            found |= floors
            if "knn" in found:
                found["knn_start" if self.config.backbone.weights else "knn_untrained"] = found["knn"]
        self._latest = {**self._latest, **found}
        if self.guard is not None:
            why = self.guard.look(done, found["knn"], self._latest["knn_start"], weights)
            self._fallen = why if done < int(self.config.train.steps) else ""
        elapsed = round(time.monotonic() - self._began, 1)
        verdict, judged = self.monitor.verdict(), self.monitor.judged()
        self.folder.log({"step": done, "look": found, "judged": judged, **_told(verdict), "elapsed": elapsed})

    def _memory_for_look(self, done: int) -> AbstractContextManager[None]:
        monitor = self.config.monitor
        return enough_for(
            f"{self.folder.path}: the look after {done} steps",
            "free some and continue with --resume, or start a new run with monitor.probe and monitor.knn below "
            f"{monitor.probe} and {monitor.knn}",
        )

    def _decide(self, signals: list[int]) -> None:
        """Why the run should end now, agreed between processes."""
        why = _stopped_by(signals[0]) if signals else ""
        if not why and self.config.health.stop:
            why = self.monitor.should_stop() or ""
            if why and self.folder.not_finite.exists():
                why += f" (the images of each such step are listed in {self.folder.not_finite})"
        why = why or self._fallen
        if self.trainer.fabric.world_size > 1:
            # By signal, since a signal to all reaches one first; 0 is any other reason.
            votes = torch.zeros(signal.NSIG)
            votes[signals[0] if signals else 0] = bool(why)
            reasons = all_sum(votes.to(self.trainer.fabric.device)).nonzero().flatten().tolist()
            if reasons and not why:
                why = _stopped_by(reasons[-1]) if reasons[-1] else "another process stopped"
        self.reason = why

    def _due(self, done: int, saved: float) -> bool:
        """A checkpoint every N minutes and at the end of an epoch (of epochs under 5 s, not of each)."""
        since = time.monotonic() - saved
        due = since > 60 * self.config.train.checkpoint_minutes or (done % self.feed.steps_per_epoch == 0 and since > 5)
        if self.trainer.fabric.world_size > 1:
            return bool(self.trainer.fabric.broadcast(due))
        return due

    def save(self, done: int) -> None:
        """Write the checkpoint after `done` steps."""
        trained = self.trainer.state_dict()
        if self.trainer.fabric.is_global_zero:
            state = {
                "step": done,
                "config": configuration.flatten(self.config),
                "data": self.feed.canvases.fingerprint,
                "monitor": self.monitor.state_dict(),
                "latest": self._latest,
                "best": None if self.guard is None else self.guard.best,
                "trainer": trained,
            }
            checkpoint.save(self.folder.checkpoint, state)
        self.trainer.fabric.barrier()

    def resume(self) -> None:
        """Go back to the newest checkpoint: weights, optimiser, teacher, centres, policy, health, and the log.

        Raises:
            UserError: when the checkpoint is damaged, or belongs to other images or another network.
        """
        state = checkpoint.load_run(self.folder.checkpoint)
        if state["data"] != self.feed.canvases.fingerprint:
            raise UserError(
                f"{self.folder.path}: was trained on other images than these (names or pixels changed); "
                "give the same DATA, or start a new run with another --out"
            )
        take_up(self.trainer, state, self.folder)
        with checkpoint.fitting(self.folder.checkpoint, "health"):
            self.monitor.load_state_dict(state["monitor"])
            self.start, self._latest = state["step"], plain_numbers(state["latest"] or {})
            if self.guard is not None:
                self.guard.load(state["best"], self.trainer.evaluated.backbone.model)
                float(self._latest["knn_start"])  # that each look asks for
        if self.trainer.fabric.is_global_zero:
            self.folder.cut_log(self.start)

    def take_best(self) -> Backbone:
        """The backbone to export, after the last step: with the best look's weights where a guard kept them."""
        backbone = self.trainer.evaluated.backbone
        if self.guard is not None and self.guard.best is not None:
            backbone.model.load_state_dict(self.guard.best["weights"])
        return backbone


def _told(verdict: Verdict) -> dict[str, Any]:
    """A verdict as the log has it."""
    return {"health": verdict.word, "color": verdict.color, "why": verdict.sentences}


def _stopped_by(number: int) -> str:
    return f"it was stopped by {signal.Signals(number).name}"


def steps_in(minutes: float, trainer: Trainer, feed: Feed, watch: Watch) -> tuple[int, str]:
    """How many steps fit into a budget, measured on a few real steps of a throw-away trainer.

    Returns:
        The number of steps, and what it was measured from.
    """
    budget = 60 * minutes
    began = time.monotonic()
    encoder = make_encoder(trainer.config, trainer.evaluated.backbone)
    watch.look(trainer.evaluated, encoder, trainer.fabric.device)
    watch.knn(encoder, trainer.fabric.device)
    look = time.monotonic() - began
    times = try_steps(trainer, feed, min(5.0, 0.04 * budget))
    # The mean over whole rounds, since a policy may do more at some steps than at others.
    a_step = statistics.fmean(times)
    # 20 looks, and 4 % for checkpoints and the report.
    left = max(0.96 * budget - 20 * look, 0.5 * budget) - (time.monotonic() - began)
    steps = max(1, int(left / a_step))
    return steps, f"{minutes:g} minutes at {a_step:.3g} s a step, measured"


def try_steps(trainer: Trainer, feed: Feed, seconds: float, start: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds of each of some real steps of a throw-away trainer, after three that nobody counts.

    From the middle of its run, and past any warm-up counted in epochs: the pace that most of a run has.

    Args:
        seconds: so many in all at least, and whole rounds of the policy; three steps at least.
        start: called when counting begins.
    """
    warm, times = 3, list[float]()
    total, trainer.steps_per_epoch = int(trainer.config.train.steps), 1
    period = trainer.parts.policy.period
    stream = feed.stream(total // 2, total)
    with freed_memory_kept():
        for step in range(total // 2, total):
            if len(times) == warm:
                start()
            began = time.monotonic()
            with trainer.around("waiting"):
                micro_batches = next(stream)
            step_or_refuse(trainer, feed, step, micro_batches, detail=step % trainer.config.monitor.log_every == 0)
            times.append(time.monotonic() - began)
            # Processes must stop at the same step.
            measured = len(times) - warm
            if trainer.fabric.broadcast(measured > 2 and measured % period == 0 and sum(times[warm:]) > seconds):
                break
    return times[warm:]


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them; a second one of either kind acts as usual."""
    caught: list[int] = []
    old: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(number, old[number])

    try:
        for number in (int(signal.SIGTERM), int(signal.SIGINT)):
            old[number] = signal.getsignal(number)
            signal.signal(number, note)
    except ValueError:  # not in the main thread: the caller handles signals
        old.clear()
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
