"""One line that tells where a run stands: loss, speed, waiting for data, health, k-NN beside its floors, time left."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from belvedere.measure.monitor import Verdict

_STYLES = {"green": "green", "amber": "yellow", "red": "bold red"}


class Progress:
    """A line that is redrawn on a terminal, and printed every 30 s where output goes to a file."""

    def __init__(self, total: int, start: int, batch: int) -> None:
        self.total, self.batch = total, batch
        self._recent: deque[tuple[float, int, float]] = deque([(time.monotonic(), start, 0.0)], maxlen=50)
        terminal = sys.stdout.isatty()
        self._pause = 0.25 if terminal else 30.0
        self._drawn = time.monotonic()
        self._live = Live(console=Console(), refresh_per_second=4, transient=False) if terminal else None
        if self._live is not None:
            self._live.start()

    def show(
        self, done: int, loss: float, waited: float, judge: Callable[[], Verdict], look: dict[str, float] | None
    ) -> None:
        """Take up a step that is done, and draw when it is time; only then is the health judged."""
        now = time.monotonic()
        self._recent.append((now, done, waited))
        if now - self._drawn < self._pause and done != self.total:
            return
        self._drawn = now
        line = self._line(done, loss, judge(), look)
        if self._live is not None:
            self._live.update(line)
        else:
            print(line.plain, flush=True)

    def _line(self, done: int, loss: float, verdict: Verdict, look: dict[str, float] | None) -> Text:
        first, last = self._recent[0], self._recent[-1]
        seconds = max(last[0] - first[0], 1e-9)
        rate = (last[1] - first[1]) / seconds
        waited = sum(entry[2] for entry in self._recent) / seconds
        left = (self.total - done) / max(rate, 1e-9)
        speed = f"{rate * self.batch:.0f} images/s  waiting {waited:.0%}"
        line = Text(f"step {done}/{self.total}  loss {loss:.3f}  {speed}  health ")
        line.append(verdict.word, style=_STYLES[verdict.color])
        if look and "knn" in look:
            line.append(f"  k-NN {look['knn']:.1f} %")
            if "knn_pixels" in look:
                floors = {name: look.get(f"knn_{name}") for name in ("pixels", "untrained", "start")}
                told = (f"{name} {level:.1f}" for name, level in floors.items() if level is not None)
                line.append(f" ({', '.join(told)})")
        line.append(f"  {clock(left)} left")
        return line

    def close(self) -> None:
        """Leave the last line standing."""
        if self._live is not None:
            self._live.stop()


def clock(seconds: float) -> str:
    """A time as clocks show it: 0:42, 3:20, 5:10:00."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
