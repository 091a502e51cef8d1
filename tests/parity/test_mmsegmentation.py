"""mIoU, mAcc, aAcc against the golden `eval_segmentation`, with and without reduce-zero-label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from core_helpers import Load
from PIL import Image

from belvedere.evaluate.segmentation import Areas
from belvedere.images.masks import MaskOptions, find_masks


@pytest.mark.parametrize("prefix", ["", "rz_"])
def test_scores_of_mmsegmentation(golden: Load, tmp_path: Path, prefix: str) -> None:
    """The masks go through files, so that the reduced zero label is that of the reader."""
    g = golden("eval_segmentation")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    names = [f"{i}.png" for i in range(len(g["gt"]))]
    for name, mask in zip(names, g[f"{prefix}gt"].numpy(), strict=True):
        Image.fromarray(mask).save(tmp_path / "masks" / name)
    masks = find_masks(tmp_path, names, options=MaskOptions(reduce_zero_label=bool(prefix)))
    areas = Areas.stack([Areas.of(g["pred"][i].numpy(), masks[i], int(g["num_classes"])) for i in range(len(names))])
    total = areas.total()
    assert np.array_equal(total.right, g[f"{prefix}intersect"])
    assert np.array_equal(total.predicted, g[f"{prefix}area_pred"])
    assert np.array_equal(total.there, g[f"{prefix}area_gt"])
    np.testing.assert_allclose(total.iou(), g[f"{prefix}IoU"], atol=1e-7)
    np.testing.assert_allclose(total.acc(), g[f"{prefix}Acc"], atol=1e-7)
    for name, theirs in (("miou", "mIoU"), ("macc", "mAcc"), ("aacc", "aAcc")):
        assert float(total.scores()[name]) == pytest.approx(100 * float(g[prefix + theirs]), abs=1e-5)
