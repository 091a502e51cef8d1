"""Segmentation by nearest patches: the classes of the most similar training patches; nothing is trained, needs masks.

Spec evaluation 2.9 (b); the patch-level reading of DINO's weighted k-NN (arXiv:2104.14294), with soft labels as in
"Towards In-Context Scene Understanding", Balazevic et al., NeurIPS 2023, arXiv:2306.01667: a patch of a test image
takes the k nearest training patches by cosine, each votes exp(cosine / T) for the classes of its pixels in their
shares. Votes, as shares of their sum, are interpolated to the mask's size, and the largest wins. k is chosen on a tenth
of the training images. The training patches kept are bounded, and so is the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from belvedere.evaluate.protocols._segmentation import Classifier, Patches, Segmenter
from belvedere.evaluate.protocols.knn import usable_ks
from belvedere.measure.knn import GALLERY_CHUNK, top_neighbours


class Options(BaseModel):
    """Neighbours to choose from, temperature T of the votes, and how many training patches to search at most."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 5, 20, 50), min_length=1)
    # Below 0.02 a vote of exp(1 / T) leaves float32.
    temperature: float = Field(0.07, ge=0.02)
    patches: int = Field(GALLERY_CHUNK, ge=1)


class SegKnn(Segmenter):
    """mIoU, mAcc, aAcc and the mean accuracy of an image in percent, and the IoU of every class."""

    Options = Options
    name = "seg_knn"
    choosing = "k"

    def settings_for(self, patches: int) -> Sequence[float]:
        """The ks of at most a fifth of the patches."""
        return usable_ks(self.options.ks, patches)

    def fit(self, patches: Patches, settings: Sequence[float], device: torch.device | str) -> Classifier:
        """Votes of the nearest patches, one search for all ks."""
        ks = [min(int(k), len(patches.features)) for k in settings]
        gallery, of_patches = patches.features.to(device), patches.shares.to(device)

        def classify(found: Tensor) -> Tensor:
            cosines, index = top_neighbours(gallery, found, max(ks))
            weights = (cosines / self.options.temperature).exp()
            shares = of_patches[index]
            votes = [torch.einsum("tk,tkc->tc", weights[:, :k], shares[:, :k]) for k in ks]
            return torch.stack([one / one.sum(1, keepdim=True) for one in votes])

        return classify

    def told(self) -> dict[str, Any]:
        """The options."""
        return {"ks": list(self.options.ks), "temperature": self.options.temperature}
