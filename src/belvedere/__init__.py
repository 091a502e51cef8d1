"""belvedere: pretrain vision transformers on your own images, without labels.

    import belvedere

    run = belvedere.pretrain("photos/", recipe="dino", minutes=30)
    encoder = belvedere.load(run)
    vectors = belvedere.embed(run, "photos/")
    results = belvedere.evaluate(run, "labelled/")

Nothing heavy is imported until one of these is called.
"""

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from belvedere.errors import UserError

if TYPE_CHECKING:
    from belvedere.api import (
        analyze,
        check,
        compare,
        embed,
        embed_parts,
        evaluate,
        export,
        fidelity,
        generate,
        load,
        predict,
        pretrain,
        report,
        sample,
    )

# Idle OpenMP threads spin unless told otherwise, which slows a step down beside other work on the same cores.
# OpenMP reads this once, when torch is loaded. A user's own value stays.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
__all__ = [
    "UserError",
    "__version__",
    "analyze",
    "check",
    "compare",
    "embed",
    "embed_parts",
    "evaluate",
    "export",
    "fidelity",
    "generate",
    "load",
    "predict",
    "pretrain",
    "report",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("belvedere.api"), name)
    raise AttributeError(f"module 'belvedere' has no attribute '{name}'")


class _Package(ModuleType):
    """Some functions, `pretrain` and `report`, are sub-packages too: on the package, the functions win."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system sets every sub-package as an attribute, which would hide the function.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
