"""What a process of its own does with the Triton kernels: `TRITON_INTERPRET` counts only before triton is imported.

python kernels_child.py render CASES VIEWS     # each (images, record, options), to a list of groups of pixels
python kernels_child.py compile 90             # every kernel for this compute capability, without a device
"""

from __future__ import annotations

import sys
from typing import Any

import torch


def render(cases: str, views: str) -> None:
    from belvedere.views.render import render_views

    made = []
    for images, params, options in torch.load(cases, weights_only=False):
        channels = images[0].shape[-1]
        constants = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
        made.append(render_views(images, params, **constants, backend="triton", **options).pixels)
    torch.save(made, views)


def compile_all(capability: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from belvedere.views import kernels

    pointers = {"images": "*u8", "record": "*fp32", "sizes": "*i32", "means": "*fp32", "normal": "*fp32"}
    colour: list[dict[str, Any]] = [{"RGB": rgb, "BLOCK": kernels.BLOCK} for rgb in (True, False)]
    for work, out in (("fp32", "fp32"), ("fp16", "fp16"), ("fp16", "bf16")):
        exact = "ieee" if work == "fp32" else "tf32"
        tiles = [{"PRECISION": exact, "TILE": kernels.TILE, "WINDOW": kernels.WINDOW}]
        for kernel, settings in (
            *((kernels._resize, one) for one in tiles),
            *((kernels._contrast_means, one) for one in colour),
            *((kernels._colour, one) for one in colour),
            *((kernels._blur, one) for one in tiles),
        ):
            types = pointers | {"levels": f"*{work}", "out": f"*{out}"} | dict.fromkeys(settings, "constexpr")
            signature = {name: types.get(name, "i32") for name in kernel.arg_names}
            source = ASTSource(kernel, signature=signature, constexprs=settings)
            made = triton.compile(source, target=GPUTarget("cuda", int(capability), 32))
            print(kernel.__name__, work, len(made.asm["cubin"]) > 0, "mma" in made.asm["ptx"])


if __name__ == "__main__":
    {"render": render, "compile": compile_all}[sys.argv[1]](*sys.argv[2:])
