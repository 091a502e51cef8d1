"""A user's second task that replaces views; the two together must be refused."""

from __future__ import annotations

from belvedere.tasks.contract import Request, Scene, Task


class CorruptToo(Task):
    """Replaces one view."""

    def requests(self, scene: Scene) -> dict[str, Request]:
        return {"zeros": Request(pixels={"global_a": scene.views["global_a"] * 0}, how="replace")}
