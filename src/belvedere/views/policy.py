"""The ViewPolicy contract: who decides which views a model is shown.

What the training loop calls, in this order, on every policy alike. Once a micro-step (a batch of one process between
two backward passes):

1. `propose(index, sizes, epoch, seed)` - parameters of all candidates, no pixels.
2. `select(params, render, score)` - the winners' parameters. The loop then renders them (with `program`).
3. `regulariser(views, render, embed)` - just before the forward pass with gradient; a scalar is added to the loss.
4. `adversary(pixels)` - on each group of the rendered pixels, on the way into the forward pass.
5. forward, backward of the whole loss.
6. `observe(per_image, params)` - just after the backward, before the network's optimiser steps.

`log()` is read whenever the loop writes its log, `state_dict()` at each checkpoint. A policy owns its parameters, their
optimiser and their reduction across processes; the loop knows none of them. The defaults do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from belvedere.views.params import ViewParams
from belvedere.views.render import Program
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot
from belvedere.views.views import Views

# render(params, scale) -> views of this batch's images, at `size * scale`, rendered with the policy's program.
Render = Callable[[ViewParams, float], Views]
# score(views, pairs) -> [P, N]: the objective's score of each pair of slot names and image. No gradient, no side
# effect.
Score = Callable[[Views, Sequence[tuple[str, str]]], Tensor]
# embed(views) -> [V, N, D]: pooled embeddings through frozen weights; gradients reach the pixels only.
Embed = Callable[[Views], Tensor]


class ViewPolicy:
    """The policy that all others refine: one view a slot by its own law, nothing selected, nothing learned."""

    class Options(BaseModel):
        """A policy's own settings (`views.<key>` on the command line); a policy with settings overrides this class."""

        model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, options: BaseModel, slots: tuple[Slot, ...], channels: int) -> None:
        """`options` is an instance of the class's `Options`; `slots` are the views that the loop will train on."""
        self.options = options
        self.slots = slots
        self.channels = channels
        # Passed to `render_views`: a learned policy's operations in place of jitter, grayscale, blur and solarize.
        self.program: Program | None = None

    def propose(self, index: ArrayLike, sizes: ArrayLike, epoch: int, seed: int) -> ViewParams:
        """Parameters of every candidate view of a batch; first call of a micro-step.

        Args:
            index: `[N]` identities of the images.
            sizes: `[N, 2]` valid canvas sizes (h, w).

        Candidates beyond a slot's first are further slots whose names begin with the slot's (`global_a.1`); the first
        keeps the plain name, so that one candidate a slot draws exactly what the random policy draws.
        """
        return sample_views(self.slots, index, sizes, epoch, seed)

    def select(self, params: ViewParams, render: Render, score: Score) -> ViewParams:
        """The winners among the candidates, one view for each of `self.slots`, in their order; right after `propose`.

        Must leave no trace: no gradient, no change of any network's state.
        """
        return params

    def regulariser(self, views: Views, render: Render, embed: Embed) -> Tensor | None:
        """A scalar added to the micro-step's loss, or None; called before the forward pass with gradient.

        `views` are those to be trained on. The gradient of the scalar reaches the policy's parameters only: `embed`
        runs frozen weights.
        """
        return None

    def adversary(self, pixels: Tensor) -> Tensor:
        """Pixels of one group `[k * N, C, h, w]` on their way into the forward; gradients may be reversed here."""
        return pixels

    def observe(self, per_image: Tensor, params: ViewParams) -> None:
        """What the trained views did: detached losses `[N]` of this process's images and their record.

        Called after the backward pass of every micro-step and before the network's optimiser steps. A learned policy
        reads its gradients here, averages them across processes and takes its own step.
        """

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors and plain values only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: a stateless policy is given another policy's state.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {', '.join(sorted(state))}")

    def log(self) -> dict[str, float]:
        """Numbers for the run's log since the last call."""
        return {}
