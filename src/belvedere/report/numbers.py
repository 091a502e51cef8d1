"""Numbers of an evaluation in a table: their names for people, their order, and the cell with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

CORRUPTIONS = {"blur": "Blur", "noise": "Noise", "jpeg": "JPEG", "contrast": "Low contrast"}
_SCORES = {"knn": "k-NN distance", "mahalanobis": "Mahalanobis", "softmax": "softmax", "energy": "energy"}
_DETECTION = {
    "auroc": "AUROC",
    "fpr95": "FPR95",
    "aupr_out": "AUPR of foreign",
    "aupr_in": "AUPR of known",
    "fpr95_published": "FPR95 as published",
}
_RANKED = {"map": "mAP", "top1": "top-1"}
_PAGES = {
    "plain": "not whitened",
    "reranked": "re-ranked",
    "global": "global vector",
    "global_whitened": "global vector, whitened",
}
STRENGTHS = 5
# In the order of the table.
ENCODERS = {"run": "this run", "untrained": "untrained network", "pixels": "raw pixels", "majority": "majority class"}
METRICS = {
    "top1": "top-1, %",
    "top5": "top-5, %",
    "balanced": "balanced accuracy, %",
    "macro_f1": "macro-F1, %",
    "weighted_f1": "weighted F1, %",
    "macro_precision": "macro precision, %",
    **{f"shots{2**n}": f"{2**n} a class, %" for n in range(5)},
    **{f"balanced{2**n}": f"{2**n} a class, balanced, %" for n in range(5)},
    **{f"recall{10**n}": f"recall@{10**n}, %" for n in range(3)},
    "map_r": "mAP@R, %",
    "map": "mAP, %",
    **{f"{metric}_{kind}": f"{name}, {what}, %" for kind, what in _PAGES.items() for metric, name in _RANKED.items()},
    "nmi": "NMI, %",
    "ari": "ARI, %",
    "fmi": "FMI, %",
    "matched": "accuracy of matched clusters, %",
    "silhouette": "silhouette, %",
    "kept": "neighbours kept, %",
    "duplicated": "near-duplicates, %",
    "test_twins": "test images with a twin, %",
    "suspected": "doubtful labels, %",
    "miou": "mIoU, %",
    "macc": "mean class accuracy, %",
    "aacc": "pixel accuracy, %",
    **{
        f"{kind}_{metric}": f"AP{at} of {what}, %"
        for kind, what in (("box", "boxes"), ("mask", "outlines"))
        for metric, at in (("ap", ""), ("ap50", " at 50 %"), ("ap75", " at 75 %"))
    },
    "within1": "within one patch of the place, %",
    "image_acc": "pixel accuracy, mean of images, %",
    "best_head": "best head, Jaccard, %",
    "mean_head": "mean of heads, Jaccard, %",
    "best_ipvit": "best head as IPViT counts, %",
    "clean": "clean, %",
    "mean": "mean of all, %",
    **{kind: f"{name}, mean, %" for kind, name in CORRUPTIONS.items()},
    **{
        f"{kind}{level}": f"{name} {level}, %"
        for kind, name in CORRUPTIONS.items()
        for level in range(1, STRENGTHS + 1)
    },
    **{f"{score}_{key}": f"{name}, {what}, %" for key, what in _DETECTION.items() for score, name in _SCORES.items()},
    "rms_calibration": "calibration error, %",
    "rms_calibration_published": "calibration error as published, %",
    "aurra": "AURRA, %",
    "frechet": "to the others, % of variance",
    "frechet_within": "within yours, % of variance",
    "ratio": "how many times as far",
    "top1_here": "top-1 here, %",
    "top1_there": "top-1 there, %",
}
PROTOCOLS = {
    "knn": "k-NN",
    "logistic": "Logistic probe",
    "linear": "Linear probe",
    "fewshot": "How many labels are needed?",
    "finetune": "Fine-tuning",
    "retrieval": "Finding images of the same class",
    "vlad": "Finding pages by their patches",
    "duplicates": "Near-duplicates and doubtful labels",
    "cluster": "Clusters",
    "map": "Map of the images",
    "seg_knn": "Segmentation by nearest patches",
    "seg_linear": "Segmentation by a linear layer",
    "seg_fpn": "Segmentation by the whole network",
    "detection": "Objects found",
    "correspondence": "Patches found again in another view",
    "attention": "Attention as masks",
    "ood": "Telling other images apart",
    "shift": "Distance of the other images",
    "corruption": "Under corruption",
}


def subjects_in_order(names: set[str]) -> list[str]:
    """The run, then what the user named, then the floors."""
    floors = [name for name in ENCODERS if name in names and name != "run"]
    return in_order(("run",), names - set(floors)) + floors


def metric_name(name: str) -> str:
    """What a metric is called on the page."""
    return METRICS.get(name, name.replace("_", " "))


def selected_on_test(result: Mapping[str, Any]) -> bool:
    """Whether a protocol chose something on the images that it reports, as `--paper-protocol` has it."""
    return bool(result.get("settings", {}).get("selected_on_test") and result.get("chosen"))


def in_order(known: Iterable[str], names: set[str]) -> list[str]:
    """The known names first and in their order, then the others by alphabet."""
    return [*(name for name in known if name in names), *sorted(names - set(known))]


def number_cell(number: dict[str, float] | None) -> str:
    """A table's cell with value, interval, and a bar where they are percent; empty for None."""
    if number is None:
        return "<td></td>"
    value, low, high = number["value"], number["low"], number["high"]
    bar = ""
    if 0 <= low <= high <= 100:
        bar = (
            f'<span class="bar"><i style="width:{value:.1f}%"></i>'
            f'<em style="left:{low:.1f}%;width:{max(high - low, 0.5):.1f}%"></em></span>'
        )
    return f'<td class="number">{value:.1f}<small>{low:.1f} to {high:.1f}</small>{bar}</td>'
