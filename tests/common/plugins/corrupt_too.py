"""A user's second task that replaces views; the two together must be refused."""

from __future__ import annotations

from typing import Any

from belvedere.tasks.contract import Request, Task
from belvedere.views.views import Views


class CorruptToo(Task):
    """Replaces one view."""

    def requests(self, views: Views, labels: Any, clock: Any) -> dict[str, Request]:
        return {"zeros": Request(pixels={"global_a": views["global_a"] * 0}, how="replace")}
