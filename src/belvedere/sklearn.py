"""A run as a scikit-learn transformer: images in, features out, in any Pipeline.

from belvedere.sklearn import EncoderTransformer

probe = make_pipeline(EncoderTransformer(run="runs/photos-dino"), LogisticRegression())
probe.fit(images, labels)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from belvedere.errors import UserError
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.cutting import Cutting
from belvedere.images.source import find_images
from belvedere.images.tiles import cut
from belvedere.measure.encoder import BORDER, Encoder
from belvedere.measure.features import extract
from belvedere.measure.readings import Reading
from belvedere.opened import configuration_of, load
from belvedere.pretrain.compose import device_of

Images = NDArray[np.uint8] | Sequence[str | os.PathLike[str]]


class EncoderTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Frozen features of images by a run's encoder, the same as `belvedere.embed`'s.

    `fit` learns nothing from the images: it loads the encoder and looks whether it can read them.

    Args:
        run: a run's folder.
        reading: which vector of an image, see `measure/readings.py`; auto takes the class token where there is one.
        device: auto, cpu, cuda or mps.
        batch: images a forward.

    Attributes:
        encoder_: the loaded `belvedere.measure.encoder.Encoder`, a plain `nn.Module`.
        cutting_: what the run makes of files. Images larger than its tiles have no one row.
    """

    def __init__(self, run: str | Path = "", reading: Reading = "auto", device: str = "auto", batch: int = 256) -> None:
        self.run = run
        self.reading = reading
        self.device = device
        self.batch = batch

    def fit(self, X: Images, y: ArrayLike | None = None) -> EncoderTransformer:
        """Load the encoder; `X` as in `transform`, `y` is not read.

        Raises:
            UserError: when `run` is no finished run, or `X` holds no images that it can read.
        """
        device = device_of(self.device)
        encoder = load(self.run, self.reading, device)
        _check(X, encoder)
        self.device_ = device
        self.cutting_ = configuration_of(Path(self.run)).config.images.cutting
        self.encoder_ = encoder
        self._n_features_out = encoder.dim  # what scikit-learn's mix-in counts names by
        return self

    def transform(self, X: Images) -> NDArray[np.float32]:
        """(N, D) float32 features.

        Args:
            X: uint8 (N, H, W, C), grey images also (N, H, W), or N paths of image files.

        Raises:
            UserError: when an image cannot be read, naming it, since every one needs its row.
        """
        check_is_fitted(self)
        _check(X, self.encoder_)
        # The way of `embed`, decoded canvases and all, so that features agree; they are gone after.
        with TemporaryDirectory(prefix="belvedere-") as place:
            canvases = _open(X, self.encoder_, Path(place), self.cutting_)
            return extract(self.encoder_, canvases, self.batch, self.device_).numpy()

    def __sklearn_tags__(self) -> Any:
        """Images and not a matrix of samples and features, and nothing learned from them."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.requires_fit = True
        tags.no_validation = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _check(X: Images, encoder: Encoder) -> None:
    """Refuse what are no images, or images of other channels than an encoder's.

    Raises:
        UserError: saying what is wanted.
    """
    if not len(X):
        raise UserError("EncoderTransformer: there are no images")
    if not isinstance(X, np.ndarray):
        if not all(isinstance(path, str | os.PathLike) for path in X):
            raise UserError("EncoderTransformer: give a uint8 array (N, H, W, C), or a list of paths")
        return
    if X.dtype != np.uint8 or X.ndim not in (3, 4):
        raise UserError(f"EncoderTransformer: images must be uint8 (N, H, W, C), these are {X.dtype} {X.shape}")
    channels = 1 if X.ndim == 3 else X.shape[3]
    if channels != encoder.channels:
        raise UserError(
            f"EncoderTransformer: images have {channels} channels, the run was trained on {encoder.channels}"
        )


def _open(X: Images, encoder: Encoder, place: Path, cutting: Cutting) -> Canvases:
    if isinstance(X, np.ndarray):
        source = find_images(X, labels="none")
    else:
        paths = [os.path.abspath(path) for path in X]
        listed = place / "images.txt"
        listed.write_text("\n".join(paths), encoding="utf-8")
        source = find_images(listed, labels="none")
    if len(cut(source, cutting, progress=False)) > len(source):
        raise UserError(
            f"EncoderTransformer: the run cuts images into tiles of {cutting.tile} px, and these are larger; "
            "give tiles, or use belvedere.embed, which gives every tile a row"
        )
    every = replace(cutting, tile=0, min_ink=0.0)  # nothing is empty that owes a row
    side = round(max(encoder.size) * BORDER)
    canvases = open_canvases(
        cut(source, every), side, channels=encoder.channels, cache_dir=place, progress=False, min_side=1, fewest=0
    )
    if canvases.skipped:
        broken = canvases.skipped[0]
        raise UserError(f"{broken.name}: cannot be read ({broken.reason}), and every image needs its row")
    return canvases
