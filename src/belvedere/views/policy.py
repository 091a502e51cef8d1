"""The ViewPolicy contract: who decides which views a model is shown.

What the training loop calls, in this order, on every policy alike. `begin_step(clock)` once an optimiser step; then
once a micro-step (a batch of one process between two backward passes):

1. `propose(index, sizes, epoch, seed)` - parameters of all candidates, no pixels.
2. `select(params, render, score)` - the winners' parameters. The loop then renders them (with `program`).
3. `regulariser(views, render, embed)` - just before the forward pass with gradient; added to the sum of losses.
4. `adversary(pixels)` - on each group of the rendered pixels, on the way into the forward pass.
5. forward, backward of the whole loss.
6. `observe(per_image, params, pooled)` - just after the backward.

`end_step()` closes the optimiser step, before the network's optimiser steps. `exported()` is asked when a run ends.
`log()` is read whenever the loop writes its log, `state_dict()` at each checkpoint. A policy owns its parameters, their
optimiser and their reduction across processes; the loop knows none of them. The defaults do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from belvedere.schedules import Clock
from belvedere.views.cost import Work
from belvedere.views.params import ViewParams
from belvedere.views.render import Program
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot
from belvedere.views.views import Views

# render(params, scale) -> views of this batch's images, at `size * scale`, rendered with the policy's program.
Render = Callable[[ViewParams, float], Views]
# embed(pixels [N, C, h, w]) -> [N, D]: pooled embeddings through frozen weights (the teacher's where there is one), of
# each image for itself; gradients reach the pixels only.
Embed = Callable[[Tensor], Tensor]


class Score(Protocol):
    """How hard each of several choices of views would be. No gradient, no side effect."""

    def __call__(self, views: Views, choices: Sequence[tuple[str, ...]], by: str = "loss", chunk: int = 0) -> Tensor:
        """`[P, N]` scores of P choices (tuples of slot names) and N images, float32; higher is harder.

        `by` is "loss" (the objective's `score`), or the distance 1 - cosine of what the student gives for a choice's
        first two views: of its "pooled" features, or of the mean over the grid after block k ("block0", "block1", ...).
        `chunk` views are forwarded at once, 0 = all.
        """


class ViewPolicy:
    """The policy that all others refine: one view a slot by its own law, nothing selected, nothing learned."""

    class Options(BaseModel):
        """A policy's own settings (`views.<key>` on the command line); a policy with settings overrides this class."""

        model_config = ConfigDict(extra="forbid", frozen=True)

    needs_pairs = False
    """Whether the policy asks for the objective's score; objectives without pairs of views are then refused."""
    cheaper = "views.policy=random chooses none"
    """What a user can set for a policy that takes less time, in words."""

    @classmethod
    def options_model(cls, given: Mapping[str, Any]) -> type[BaseModel]:
        """The model that validates the settings `given`; a policy around another one adds that one's settings."""
        return cls.Options

    def __init__(self, options: BaseModel, slots: tuple[Slot, ...], channels: int) -> None:
        """`options` is an instance of the class's `Options`; `slots` are the views that the loop will train on."""
        self.options = options
        self.slots = slots
        self.channels = channels
        # Passed to `render_views`: a learned policy's operations in place of jitter, grayscale, blur and solarize.
        self.program: Program | None = None
        # The objective's teacher need not see again what it saw when it scored the winners: see `hard`.
        self.reuses_teacher = False
        # What is scored, at which scale and by what (see `Score`): checked against the network before the first step.
        self.scores_at: tuple[tuple[Slot, ...], float] = (), 1.0
        self.scores_by = "loss"
        # So many steps make one round of what the policy does; a budget in minutes is planned by whole rounds.
        self.period = 1

    def begin_step(self, clock: Clock) -> None:
        """Where training stands; called once an optimiser step, before its first `propose`."""

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
        """A sum over the images, added to that of their losses, or None; called before the forward pass with gradient.

        `views` are those to be trained on. The gradient of the scalar reaches the policy's parameters only: `embed`
        runs frozen weights.
        """
        return None

    @property
    def regularises(self) -> bool:
        """Whether there is a `regulariser`."""
        return type(self).regulariser is not ViewPolicy.regulariser

    def adversary(self, pixels: Tensor) -> Tensor:
        """Pixels of one group `[k * N, C, h, w]` on their way into the forward; gradients may be reversed here."""
        return pixels

    def observe(self, per_image: Tensor, params: ViewParams, pooled: Mapping[str, Tensor]) -> None:
        """What the trained views did: detached losses `[N]` of this process's images and their record.

        The losses are the objective's, or the tasks' beside an objective that has none. `pooled` holds, by slot,
        detached features `[N, D]` by the weights `embed` has: the teacher's of the views it saw, or the student's, as
        training computed them; but if those were of altered views (mixed, masked, turned), of the policy's own, global
        ones only. Called after the backward pass of every micro-step.
        """

    def end_step(self) -> None:
        """After the last micro-step of an optimiser step and before the network's optimiser steps.

        A learned policy reads its gradients here, averages them across processes and takes its own step. They are those
        of the loop's loss, a mean over the images of all processes times the number of processes.
        """

    def expected_cost(self, work: Work) -> float:
        """Time of a step with this policy over the time of one with `random`, by counting forward passes."""
        return 1.0

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

    def exported(self) -> dict[str, Any] | None:
        """What was learned, in plain values: the run's `policy.json`; None where nothing is."""
        return None

    def log(self) -> dict[str, float]:
        """Numbers for the run's log since the last call."""
        return {}
