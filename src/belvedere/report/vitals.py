"""The values of the health section: the group of each, its name for the reader, and one sentence to read it by.

What the monitor judges and what it judges by are in `measure/bands.py`; here is only how it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vital:
    """How a value is shown: its title, a sentence, the y range that its plot always shows, and whether y is log."""

    title: str
    note: str
    domain: tuple[float, float] | None = None
    log: bool = False


GROUPS: dict[str, dict[str, Vital]] = {
    "Is the output collapsing?": {
        "head_std": Vital(
            "Spread of the head's output", "1: spread in all directions; 0: the same for every image.", (0, 1.05)
        ),
        "projection_std": Vital(
            "Spread of the projections in a batch",
            "1: spread in all directions; 0: the same for every image.",
            (0, 1.05),
        ),
        "projection_rank": Vital(
            "Directions of the projections in a batch", "Over how many directions they spread; 1: all say the same."
        ),
        "prediction_std": Vital(
            "Spread of the predictions in a batch",
            "1: spread in all directions; 0: the same for every image.",
            (0, 1.05),
        ),
        "entropy_share": Vital(
            "Entropy of the teacher, share of ln K", "1: evenly spread over all prototypes; 0: sure of one.", (0, 1)
        ),
        "mean_entropy_share": Vital(
            "Variety of the teacher's answers", "1: all prototypes are used alike; 0: always the same one.", (0, 1)
        ),
        "max_mean_prob": Vital("Largest mean probability", "Near 1 one prototype takes all images.", (0, 1)),
        "patch_max_mean_prob": Vital(
            "Largest mean probability, patches", "Near 1 one prototype takes all masked patches.", (0, 1)
        ),
        "patch_entropy_share": Vital(
            "Entropy of the teacher, patches, share of ln K", "1: evenly spread over all prototypes.", (0, 1)
        ),
        "kl": Vital(
            "KL of student and teacher", "Near 0 they agree whatever the image: constant output.", (5e-4, 1), log=True
        ),
        "negative_cosine": Vital(
            "Cosine of different images", "Near 1 different images are embedded alike.", (-0.1, 1)
        ),
    },
    "Do the features tell images apart?": {
        "feature_std": Vital(
            "Spread of the features", "1: spread in all directions; 0: the same for every image.", (0, 1.05)
        ),
        "mean_cosine": Vital(
            "Mean cosine of two images", "0 is ideal; near 1 all features point the same way.", (0, 1)
        ),
        "uniformity": Vital("Uniformity", "Lower is more evenly spread over the sphere; 0 is constant.", (-4, 0)),
        "alignment": Vital("Alignment", "Distance of the two views of an image: lower is more alike.", (0, 1)),
        "instance_recall": Vital(
            "Views that find each other", "Share of images whose nearest neighbour is their own other view.", (0, 1)
        ),
        "instance_drop": Vital(
            "Lost instances", "How much fewer views find each other than at the run's best.", (0, 1)
        ),
        "rankme_share": Vital(
            "RankMe, share of what is possible", "How many of the possible directions the features use.", (0, 0.2)
        ),
        "rankme_drop": Vital("Lost rank", "How much fewer directions are used than at the run's best.", (0, 1)),
        "alpha_req": Vital("Slope of the spectrum (alpha-ReQ)", "Near 1 is good; steep means few directions.", (0, 4)),
        "lidar": Vital("LiDAR", "Directions that tell images apart."),
        "lidar_drop": Vital(
            "Lost LiDAR", "How much fewer directions tell images apart than at the run's best.", (0, 1)
        ),
        "attention_max": Vital(
            "Attention entropy, broadest head", "0: looks at one token; 1: everywhere alike.", (0, 1)
        ),
        "attention_min": Vital(
            "Attention entropy, narrowest head", "0: looks at one token; 1: everywhere alike.", (0, 1)
        ),
    },
    "Can the learned views be recognised?": {
        "policy/l_reg_share": Vital("Loss of recognising a view's image", "Share of chance; 1: a guess.", (0, 1)),
        "policy/retention": Vital(
            "How much harder operations make it",
            "0: as hard as the crop alone makes it, 1: a guess; the policy is held at views.retention.",
            (0, 1),
        ),
        "policy/dead_views": Vital("Blank views", "Share of views that the policy left without contrast.", (0, 0.1)),
        "policy/apply": Vital("Second operation", "How often the policy applies one.", (0, 1)),
        "policy/at_bound": Vital(
            "Strengths at their bound",
            "Share of the operations drawn whose strength the policy would move further than it may.",
            (0, 1),
        ),
    },
    "Is the training stable?": {
        "gradient_spikes": Vital(
            "Gradient spikes", "Jumps of the patch embedding's gradient within the last 500 steps.", (0, 5)
        ),
        "patch_step": Vital(
            "Step of the patch embedding", "Share of its length by which one step moves it.", (0, 0.04)
        ),
        "clip_rate": Vital(
            "Clipped gradients", "Share of the tensors whose gradient was too long and was shortened.", (0, 1)
        ),
        "teacher_gap": Vital(
            "Gap of teacher and student",
            "Distance of their weights; 0: no teacher at all; growing on and on: it lags.",
            (0, 0.5),
        ),
    },
}
"""Group -> value -> how it is shown, in the page's order."""

VITALS = {name: vital for group in GROUPS.values() for name, vital in group.items()}

# Shown together: group of gradients -> its line's label.
BACKBONE_GRADIENTS = {
    "patch_embed": "patches",
    "pos_embed": "positions",
    "first_block": "first block",
    "middle_block": "middle",
    "last_block": "last block",
}
HEAD_GRADIENTS = {"head_body": "head", "last_layer": "last layer", "all": "all"}
RANKS = {"rankme": "RankMe", "rankme_centred": "centred", "participation_ratio": "participation"}
# Values of the looks that other plots hold, that only explain one, or that sentences tell better than curves.
_FLOORS = {"knn", "knn_pixels", "knn_untrained", "knn_start"}
_YES_OR_NO = {"finite", "both_rising", "loss_at_chance", "first_epoch_accuracy"}
ELSEWHERE = {"step", "alpha_req_fit", "alpha_req_r2", *_FLOORS, *_YES_OR_NO, *RANKS}
