"""The model card of an exported encoder: how to load it, what it was made from and with, and how well it did.

Everything stands in the run's folder; what nobody measured or stated, such as a licence, is said to be unknown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from belvedere import config as configuration
from belvedere.measure.encoder import Encoder
from belvedere.report.record import Record

Rows = list[tuple[str, ...]]

LOADING = {
    "timm": """```python
import timm

encoder = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
features = encoder(pixels)
```""",
    "safetensors": "`model.safetensors` holds the weights and `config.json` the architecture, its arguments and the "
    "transform; `belvedere.load(RUN)` builds the network.",
    "onnx": """```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(features,) = session.run(["features"], {"pixels": pixels})
```""",
}


def model_card(record: Record, encoder: Encoder, form: Literal["timm", "safetensors", "onnx"]) -> str:
    """Markdown of a run's model card."""
    parts = [
        f"# {record.folder.resolve().name}",
        f"An image encoder ({encoder.backbone.architecture}, {encoder.dim} features an image), pretrained with "
        f"belvedere's recipe {record.resolved.config.recipe}.",
        "## Use",
        LOADING[form],
        _transform(encoder),
        "## Images that it was trained on",
        _images(record),
        "## Health of the training",
        _health(record),
        "## Evaluation",
        _evaluation(record.evaluation),
        "## Settings",
        _table(("setting", "value", "where from"), _settings(record)),
        "## Licence and limits",
        "The run says nothing of a licence: that of the images, and of weights that the run started from, applies to "
        "what may be done with this model. It was measured on the images named above only.",
    ]
    return "\n\n".join(parts) + "\n"


def _transform(encoder: Encoder) -> str:
    told = encoder.describe()
    height, width = encoder.size
    mean, std = (", ".join(f"{x:.4f}" for x in numbers) for numbers in (encoder.mean, encoder.std))
    return (
        f"`pixels` are {encoder.channels} x {height} x {width} ({told['transform']}), values / 255, minus the mean "
        f"({mean}), over the standard deviation ({std})."
    )


def _images(record: Record) -> str:
    config = record.resolved.config
    # The name and not the path: a card may be published.
    rows: Rows = [("source", Path(config.data).name or "not recorded")]
    rows += [("images", f"{record.images:,}")] if record.images is not None else []
    rows += [("with a label", f"{record.labelled:,}")] if record.labelled is not None else []
    rows += [("set aside", f"{len(record.skipped):,}")] if record.skipped is not None else []
    rows += [("channels", str(config.images.channels))]
    rows += [("mean", _words(config.images.mean)), ("standard deviation", _words(config.images.std))]
    rows += [("labels were trained on", "yes" if config.learns_labels else "no")]
    if config.backbone.weights:
        rows += [("started from", f"{config.backbone.weights}, trained on other images")]
    return _table(("of the images", ""), rows)


def _health(record: Record) -> str:
    if not record.looks:
        return "Not measured."
    look = record.looks[-1]
    early = f" The run ended early: {record.ended}." if record.ended else ""
    return f"After {record.done:,} of {record.planned:,} steps: **{look.word}**. {' '.join(look.why)}{early}"


def _evaluation(results: list[dict[str, Any]]) -> str:
    """A table a protocol: every subject's numbers, the run's beside its floors, with 95 % intervals."""
    tables = [_protocol(result) for result in results if result["metrics"]]
    return "\n\n".join(tables) if tables else "Not evaluated: `belvedere evaluate RUN DATA` measures it."


def _protocol(result: dict[str, Any]) -> str:
    metrics, settings = result["metrics"], result["settings"]
    names = list(dict.fromkeys(name for numbers in metrics.values() for name in numbers))
    rows: Rows = [(subject, *(_number(numbers.get(name)) for name in names)) for subject, numbers in metrics.items()]
    test = settings.get("test", {}).get("images")
    said = [f"{test:,} test images" if test is not None else "", settings.get("split", "")]
    said += ["settings selected on the test images" if settings.get("selected_on_test") else ""]
    head = f"**{result['protocol']}** ({'; '.join(filter(None, said))}), value [95 % interval]:"
    return f"{head}\n\n{_table(('', *names), rows)}"


def _number(number: dict[str, float] | None) -> str:
    return "" if number is None else f"{number['value']:.1f} [{number['low']:.1f}, {number['high']:.1f}]"


def _settings(record: Record) -> Rows:
    """Every setting that is not the schema's default."""
    origin = record.resolved.origin
    return [
        (key, _words(value), origin[key])
        for key, value in configuration.flatten(record.resolved.config).items()
        if key != "data" and origin.get(key, "default") != "default"
    ]


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table(head: tuple[str, ...], rows: Rows) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
