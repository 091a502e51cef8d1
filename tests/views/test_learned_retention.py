"""A7: a network and a policy against each other on handwritten digits; what the views keep follows `retention`.

The operations go as far as a blank image, so that nothing but the regulariser keeps the digit.

The spec's targets are shares of chance, .29, .43 and .58 of log B; `views.retention` is a share of the way from what
crops alone lose to chance. Crops of digits lose .31 to .42 of chance (more as network and policy play), so .29 of it
cannot be asked for: our .05 comes closest, and .12 and .29 are the spec's other two. Over the last 50 steps:

| retention | .05 | .12 | .2 | .25 (shipped) | .29 | .43 | .58 | no regulariser |
|---|---|---|---|---|---|---|---|---|
| loss of recognition, share of chance | .33 | .45 | .52 | .54 | .58 | .73 | .79 | .90 |
| views whose digit a network trained on whole ones reads | .75 | .58 | .49 | .43 | .48 | .37 | .24 | .23 |
| dead views | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |

Standard error of the reading .01; between neighbours as near as .2, .25 and .29 the draws of one game decide more: with
other batches .05, .12, .25 and .29 are at .32, .43, .52 and .54 of chance and .75, .61, .49 and .45 can be read.
Digits become illegible before they become blank, here even without the regulariser, so the spec's bound on dead views
(.4 %) is kept but hardly tested by this toy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from belvedere.schedules import Clock
from belvedere.views import operations
from belvedere.views.operations import Operation
from belvedere.views.params import ViewParams
from belvedere.views.policies import learned
from belvedere.views.policies._retention import retrieval_loss
from belvedere.views.policies.learned import Learned
from belvedere.views.program import clean
from belvedere.views.render import render_views
from belvedere.views.slots import Slot
from belvedere.views.views import Views

SIDE, BATCH, STEPS, LAST = 16, 64, 200, 50
SLOTS = tuple(Slot(f"global_{name}", (SIDE, SIDE), (0.6, 1.0), flip=0) for name in "ab")
WIDE = (
    Operation("brightness", partial(operations.brightness, reach=1.0), signed=True),
    Operation("contrast", partial(operations.contrast, reach=1.0), signed=True),
    Operation("blur", partial(operations.blur, sigma=40.0)),
    Operation("solarize", operations.solarize, smooth=False),
    Operation("posterize", operations.posterize),
    Operation("translate", partial(operations.translate_x, reach=1.0), signed=True),
    Operation("rotate", partial(operations.rotate, degrees=90.0), signed=True),
)
MIDDLE = Clock(50, 10, 100)


def digits() -> tuple[Tensor, Tensor]:
    """1797 images uint8 [N, 16, 16, 1], and what they show."""
    data = load_digits()
    levels = torch.from_numpy(data.images).float()[:, None] / 16 * 255
    images = F.interpolate(levels, size=(SIDE, SIDE), mode="bilinear").round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous(), torch.from_numpy(data.target)


def network(out: int) -> nn.Sequential:
    layers = [nn.Conv2d(a, b, 3, 2, 1) for a, b in ((1, 32), (32, 64), (64, 64))]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Flatten(), nn.Linear(256, out))


def batches(seed: int, steps: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randperm(1797, generator=generator)[:BATCH]


def contrast_loss(a: Tensor, b: Tensor) -> Tensor:
    return (retrieval_loss(a, b) + retrieval_loss(b, a)) / 2


class Played(NamedTuple):
    """What is left after a game: the share of views that can be read; of its last steps, as the policy tells them, the
    loss of recognition as a share of chance, and the share of dead views."""

    readable: float
    l_reg_share: float
    dead: float


class Game:
    """Images, a network that was trained for a while on views as the policy starts, and a reader of digits."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.images, self.labels = digits()
        self.network, self.reader = network(32), network(10)
        policy = Learned(Learned.Options(), SLOTS, channels=1)
        learns = torch.optim.Adam([*self.network.parameters(), *self.reader.parameters()], 2e-3)
        for number, rows in enumerate(batches(0, 120)):
            params = self.propose(policy, rows, number)
            views = self.render(policy, params)
            seen = contrast_loss(*(self.network(views[slot.name]) for slot in SLOTS)).mean()
            whole = self.render(policy, clean(params, "global_a"))["global_a"]
            learns.zero_grad()
            (seen + F.cross_entropy(self.reader(whole), self.labels[rows])).backward()
            learns.step()

    def propose(self, policy: Learned, rows: Tensor, number: int) -> ViewParams:
        return policy.propose(rows.numpy(), [(SIDE, SIDE)] * len(rows), epoch=number, seed=0)

    def render(self, policy: Learned, params: ViewParams, scale: float = 1.0) -> Views:
        return render_views(self.images[params.index], params, mean=(0.3,), std=(0.35,), program=policy.program)

    def play(self, retention: float) -> Played:
        """Policy and network against each other."""
        policy = Learned(Learned.Options(retention=retention, lr=0.03), SLOTS, channels=1)
        net = copy.deepcopy(self.network)
        learns = torch.optim.Adam(net.parameters(), 5e-4)
        for number, rows in enumerate(batches(7, STEPS)):
            policy.begin_step(MIDDLE)
            params = self.propose(policy, rows, 1000 + number)
            render = partial(self.render, policy)
            views = render(params)
            policy.regulariser(views, render, net)
            z = {slot.name: net(views[slot.name]) for slot in SLOTS}
            per_image = contrast_loss(*z.values())
            learns.zero_grad()
            per_image.mean().backward()
            policy.observe(per_image.detach(), params, {slot: found.detach() for slot, found in z.items()})
            policy.end_step()
            learns.step()
            if number == STEPS - LAST - 1:
                policy.log()  # from here on it tells of what follows
        told = policy.log()
        rows = torch.arange(len(self.images))
        with torch.no_grad():
            shown = self.render(policy, self.propose(policy, rows, 9999))["global_a"]
            read = float((self.reader(shown).argmax(1) == self.labels).float().mean())
        return Played(read, told["policy/l_reg_share"], told["policy/dead_views"])


@pytest.mark.slow
def test_views_keep_as_much_as_retention_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "space", lambda *_: WIDE)
    game = Game()
    much, middle, little, least = played = [game.play(retention) for retention in (0.05, 0.12, 0.2, 0.29)]
    shipped = game.play(Learned.Options().retention)
    monkeypatch.setattr(learned, "WEIGHT_START", 0.0)
    monkeypatch.setattr(learned, "ascend", lambda *_: 0.0)
    nothing = game.play(0.43)
    three_errors = 3 * (2 * 0.25 / len(game.images)) ** 0.5
    assert much.readable > middle.readable + three_errors
    assert middle.readable > little.readable + three_errors
    assert little.readable > nothing.readable + three_errors
    assert nothing.readable < 0.35
    # The spec's order, at its shares of chance, and no dead views (2.5).
    assert (middle.l_reg_share, least.l_reg_share) == pytest.approx((0.43, 0.58), abs=0.07)
    assert middle.readable > least.readable + three_errors
    assert min(least.readable, shipped.readable) > nothing.readable + three_errors
    assert max(game.dead for game in [*played, shipped]) <= 0.004
