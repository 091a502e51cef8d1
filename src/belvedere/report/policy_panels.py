"""What a view policy did over training, hard views or learned ones, under headings."""

from __future__ import annotations

from belvedere.report.curves import Panel
from belvedere.report.hard_panels import choice_panels, colour_panels, overlap_panels
from belvedere.report.learned_panels import operation_panels, strength_panels
from belvedere.report.record import Record
from belvedere.schedules import batches


def policy_groups(record: Record) -> list[tuple[str, list[Panel]]]:
    """(heading, panels) of all that the run's policy logged; empty where it logged nothing of its own."""
    groups = [
        ("Which views are chosen", overlap_panels(record)),
        ("Colours of the chosen views", colour_panels(record)),
        ("Is choosing fair, and worth its price?", choice_panels(record)),
        ("Which operations are learned", operation_panels(record)),
        ("How hard the learned views are", strength_panels(record)),
    ]
    return [(heading, panels) for heading, panels in groups if panels]


def told_of_epochs(record: Record) -> str:
    """How many steps an epoch has, as a sentence for the lead of curves over steps; empty where it is not known."""
    batch = record.resolved.config.train.batch
    if record.images is None or batch == "auto":
        return ""
    steps = max(1, batches(record.images, batch))
    return f" {steps:,} {'step' if steps == 1 else 'steps'} = 1 epoch."
