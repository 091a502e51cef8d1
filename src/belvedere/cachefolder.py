"""Where belvedere keeps what can be made again, and what it makes others keep there."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path


def cache_folder(given: str | Path | None = None) -> Path:
    """Where what can be made again is kept: as given, or $BELVEDERE_CACHE, or `~/.cache/belvedere`."""
    return Path(given or os.environ.get("BELVEDERE_CACHE") or "~/.cache/belvedere").expanduser()


def keep_matplotlib_inside() -> None:
    """Have matplotlib, when it is imported after this, write its list of fonts below the cache and not into the home.

    What the user says in $MPLCONFIGDIR stays; so does matplotlib's own place where the cache cannot be written. That
    the list could not be kept is no news: it is made again.
    """
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    if "MPLCONFIGDIR" not in os.environ:
        folder = cache_folder().absolute() / "matplotlib"
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["MPLCONFIGDIR"] = str(folder)
