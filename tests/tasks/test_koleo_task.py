"""KoLeo beside other objectives: it spreads the global vectors, each global view by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from belvedere.tasks.contract import Answer
from tiny import tiny_canvases, tiny_trainer, train


def test_it_is_the_sum_over_global_views_of_the_distance_to_the_nearest() -> None:
    trainer, feed = tiny_trainer("dino", tasks=["koleo"], task__koleo__weight=0.5)
    task = trainer.parts.tasks["koleo"]
    batch = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(0))
    requests = task.requests(batch.scene)
    views = {slot: trainer.parts.student.backbone(batch.scene.views[slot]) for slot in ("global_a", "global_b")}
    found = task.loss({"views": Answer(views, {}, requests["views"])}, batch.scene, {})["spread"]
    expected = torch.zeros(len(found))
    for features in views.values():
        z = F.normalize(features.cls, dim=-1)
        distance = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
        expected -= 0.5 * distance.min(1).values.log()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_vectors_are_further_apart_with_it() -> None:
    """The same run of SimSiam, whose vectors nothing else keeps apart, with and without."""
    spread = {}
    for weight in (0.0, 1.0):
        settings = {"train__steps": 40, "train__batch": 32, "train__lr": 1e-3, "task__koleo__weight": weight}
        trainer, feed = tiny_trainer("simsiam", tiny_canvases(64), tasks=["koleo"], **settings)
        train(trainer, feed, 0, 40)
        batch = trainer.prepare(next(feed.stream(0, 1))[0], trainer.clock(39))
        with torch.no_grad():
            z = F.normalize(trainer.parts.student.backbone(batch.scene.views["global_a"]).cls, dim=-1)
        spread[weight] = torch.cdist(z, z).fill_diagonal_(torch.inf).min(1).values.mean().item()
    assert spread[1.0] > spread[0.0]
