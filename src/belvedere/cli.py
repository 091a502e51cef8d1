"""The command line: one short function a command. Torch is imported only after the arguments are valid."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import click

from belvedere import __version__, config, launch, plugins
from belvedere.cachefolder import keep_matplotlib_inside
from belvedere.errors import UserError, printable
from belvedere.schema import SMALLEST_TILE, Reading

DATA = click.argument("data")
RUN = click.argument("run", type=click.Path(path_type=Path))
WORDS = click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
RECIPE = click.option("--recipe", help="A recipe's name, or a YAML file.  [default: simclr]")
LABELS = click.option(
    "--labels", default="auto", show_default=True, help="auto, folder, none, or a CSV: path,label,group."
)
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
DEVICES = click.option(
    "--devices",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes on this machine, one a device; on several machines start it with torchrun.",
)
INIT = click.option("--init", help="Weights to start from: timm:NAME, a run's folder, or an official .pth.")
BACKBONE = click.option("--backbone", help="vit_tiny, vit_small, vit_base, resnet50, any timm name, or scatnet30.")
VIEWS = click.option("--views", help="View policy in place of the recipe's.")
OBJECTIVE = click.option("--objective", help="Objective in place of the recipe's.")
PLUGIN = click.option("--plugin", multiple=True, help="A Python file of your own: an objective, policy or task.")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with:  belvedere check PHOTOS/  then  belvedere pretrain PHOTOS/",
)
@click.version_option(__version__)
def app() -> None:
    """Pretrain vision transformers on your own images, without labels.

    DATA is a folder of images (any nesting), a text list of paths, a glob, a .npy or .npz file, or many images in few
    files: .tar shards, Parquet, a saved data set. A URL such as s3://bucket/shards/ does for most of them, and
    bytes:FOLDER pictures files that are no images.
    """


@app.command()
@DATA
@WORDS
@RECIPE
@BACKBONE
@INIT
@VIEWS
@OBJECTIVE
@click.option("--epochs", type=float, help="Budget in passes over the images.")
@click.option("--minutes", type=float, help="Budget in minutes.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder; default runs/<data>-<recipe>.")
@DEVICE
@DEVICES
@click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped; start it if there is none.")
@PLUGIN
def pretrain(
    data: str,
    words: tuple[str, ...],
    recipe: str | None,
    backbone: str | None,
    init: str | None,
    views: str | None,
    objective: str | None,
    epochs: float | None,
    minutes: float | None,
    out: Path | None,
    device: str,
    devices: int,
    resume: bool,
    plugin: tuple[str, ...],
) -> None:
    """Pretrain on images.

    Writes a folder with the model, the log and a report. KEY=VALUE sets anything that a recipe can hold, such as
    train.batch=256; `belvedere recipes show dino` lists all keys.
    """
    flags = {
        "backbone.name": backbone,
        "backbone.weights": init,
        "views.policy": views,
        "objective.name": objective,
        "train.epochs": epochs,
        "train.minutes": minutes,
    }
    given = _given(flags, words)
    resolved = _resolve(recipe, given, plugin)
    _spread(devices, device)
    from belvedere import api

    api.pretrain_resolved(data, resolved, given, out=out, device=device, resume=resume, named=recipe)


def _list_protocols(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        for name, about in plugins.about("protocol").items():
            click.echo(f"{name:16} {about}")
        context.exit()


@app.command()
@RUN
@DATA
@WORDS
@click.option(
    "--list", is_flag=True, is_eager=True, callback=_list_protocols, expose_value=False, help="All protocols."
)
@click.option("--test", help="Held-out images; default: a tenth of DATA.")
@click.option("--protocol", help="Protocols, comma-separated; default: those that fit DATA.")
@click.option("--baseline", multiple=True, help="Weights to stand beside the run: timm:NAME, a run or a .pth.")
@click.option("--other", help="Images from elsewhere, for the protocols that compare.")
@click.option("--quick", is_flag=True, help="All cheap protocols on at most 2,000 + 1,000 images.")
@click.option("--paper-protocol", is_flag=True, help="Choose settings on the test images, as most papers do.")
@LABELS
@click.option("--out", type=click.Path(path_type=Path), help="JSON file; default RUN/evaluation.json.")
@DEVICE
@DEVICES
def evaluate(
    run: Path,
    data: str,
    words: tuple[str, ...],
    test: str | None,
    protocol: str | None,
    baseline: tuple[str, ...],
    other: str | None,
    quick: bool,
    paper_protocol: bool,
    labels: str,
    out: Path | None,
    device: str,
    devices: int,
) -> None:
    """Measure a run on your images.

    Raw pixels, the untrained network and the commonest class go through the same protocols, to compare with, and so
    does what --baseline names. KEY=VALUE sets an option of a protocol, such as knn.temperature=0.1. A folder with
    images/ and masks/ has the classes of pixels, with annotations/instances.json objects.
    """
    names = None if protocol is None else [name.strip().replace("-", "_") for name in protocol.split(",")]
    for name in names or ():
        plugins.check_name("protocol", name)
    settings = config.parse_overrides(words)
    _check_run(run)
    _spread(devices, device)
    from belvedere import api

    api.evaluate(
        run,
        data,
        test=test,
        protocols=names,
        baselines=baseline,
        other=other,
        labels=labels,
        out=out,
        device=device,
        paper_protocol=paper_protocol,
        quick=quick,
        settings=settings,
    )


@app.command()
@click.argument("classifier", type=click.Path(path_type=Path))
@DATA
@click.option("--out", type=click.Path(path_type=Path), required=True, help="x.csv.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes an image to write.")
@DEVICE
def predict(classifier: Path, data: str, out: Path, top: int, device: str) -> None:
    """Classify images.

    CLASSIFIER is the folder that `belvedere evaluate RUN DATA --protocol finetune` leaves in RUN/classifier. Writes a
    row an image: its path, the predicted class and its probability, and the next most likely ones.
    """
    if out.suffix != ".csv":
        raise UserError(f"--out {out}: the ending must be .csv")
    from belvedere import api

    api.predict(classifier, data, out=out, top=top, device=device)


@app.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN [MORE]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("compare.html"), show_default=True)
def compare(runs: tuple[Path, ...], out: Path) -> None:
    """Write a page on runs side by side.

    All must have been evaluated on the same images; each is compared with the first, item by item.
    """
    if len(runs) < 2:
        raise UserError("compare: give two or more different runs")
    from belvedere import api

    click.echo(api.compare(*runs, out=out))


@app.command()
@RUN
@DATA
@click.option("--out", required=True, help="x.npz, x.parquet or x.csv; FOLDER/ for parts in Parquet.")
@click.option(
    "--part-images",
    type=click.IntRange(min=1),
    help="Images a part, with --out FOLDER/.  [default: 20000]",
)
@click.option(
    "--reading",
    type=click.Choice(get_args(Reading)),
    default="auto",
    show_default=True,
    help="Class token, mean of the patches, class tokens of the last 4 blocks, GeM.",
)
@DEVICE
@DEVICES
def embed(run: Path, data: str, out: str, part_images: int | None, reading: Reading, device: str, devices: int) -> None:
    """Write one vector an image.

    File names, labels and the names of skipped files come with them. With --out FOLDER/ processes write Parquet files
    of --part-images rows each, for more images than memory holds; after a kill, the same command makes what is missing.
    """
    parts = out.endswith("/") or Path(out).is_dir()
    if not parts and Path(out).suffix not in (".npz", ".parquet", ".csv"):
        raise UserError(f"--out {out}: the ending must be .npz, .parquet or .csv, or / for a folder of parts")
    if part_images is not None and not parts:
        raise UserError("--part-images: only a folder has parts, --out FOLDER/")
    _check_run(run)
    _spread(devices, device)
    from belvedere import api

    if parts:
        more = {} if part_images is None else {"part_images": part_images}
        api.embed_parts(run, data, out, reading=reading, device=device, **more)
    else:
        api.embed(run, data, out=out, reading=reading, device=device)


@app.command()
@DATA
@WORDS
@click.option("--epochs", type=float, help="Budget in passes over the images.")
@click.option("--minutes", type=float, help="Budget in minutes.")
@click.option("--encoder", help="A run in whose features FID and KID are measured on the way.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@DEVICE
@click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped; start it if there is none.")
def generate(
    data: str,
    words: tuple[str, ...],
    epochs: float | None,
    minutes: float | None,
    encoder: str | None,
    out: Path,
    device: str,
    resume: bool,
) -> None:
    """Learn to make images like these: ViTGAN.

    Writes a folder with the generator, pictures of samples and a report. KEY=VALUE sets anything that is listed in its
    generator.yaml, such as train.batch=32.
    """
    from belvedere.generate import settings

    flags = {"train.epochs": epochs, "train.minutes": minutes, "encoder": encoder}
    given = {key: value for key, value in flags.items() if value is not None} | config.parse_overrides(words)
    settings.plan(given)
    if encoder is not None:
        _check_run(Path(encoder))
    from belvedere import api

    api.generate(data, out=out, settings=given, device=device, resume=resume)


@app.command()
@RUN
@click.option("--number", type=click.IntRange(min=1), default=64, show_default=True, help="How many.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write PNG files to.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@DEVICE
def sample(run: Path, number: int, out: Path, seed: int, device: str) -> None:
    """Make images with what `belvedere generate` learned."""
    from belvedere import api

    click.echo(api.sample(run, out=out, number=number, seed=seed, device=device))


@app.command()
@RUN
@DATA
@click.option("--encoder", type=click.Path(path_type=Path), help="A run in whose features images are compared.")
@click.option("--inception", type=click.Path(path_type=Path), help="Or a file with the weights that papers use.")
@click.option("--number", type=click.IntRange(min=2), default=10_000, show_default=True, help="Images on either side.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@DEVICE
def fidelity(
    run: Path, data: str, encoder: Path | None, inception: Path | None, number: int, seed: int, device: str
) -> None:
    """How far are made images from real ones? FID and KID."""
    from belvedere import api

    told = api.fidelity(run, data, encoder=encoder, inception=inception, number=number, seed=seed, device=device)
    click.echo(f"{told.generated} images of the run, {told.real} of yours")
    click.echo(f"FID {told.fid:.2f}, KID {told.kid:.4f} (deviation over subsets {told.kid_std:.4f})")
    if told.inception_score is not None:
        click.echo(f"inception score {told.inception_score:.2f}")
    if told.floor is not None:
        click.echo(f"FID of as many other real images: {told.floor:.2f}")


@app.command()
@DATA
@WORDS
@RECIPE
@click.option("--out", type=click.Path(path_type=Path), default=Path("views.png"), show_default=True)
@click.option("--images", type=click.IntRange(1, 16), default=4, show_default=True, help="How many to show.")
@PLUGIN
def views(data: str, words: tuple[str, ...], recipe: str, out: Path, images: int, plugin: tuple[str, ...]) -> None:
    """Draw what the network will be shown.

    Some images with their crop boxes, and the views beside them.
    """
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out {out}: the ending must be .png, .pdf or .svg")
    resolved = _resolve(recipe, config.parse_overrides(words), plugin)
    from belvedere import api

    api.draw_views(data, resolved, out=out, images=images)


@app.command()
@DATA
@WORDS
@RECIPE
@BACKBONE
@INIT
@VIEWS
@OBJECTIVE
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=15, show_default=True, help="Of steps to measure."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@DEVICE
@PLUGIN
def profile(
    data: str,
    words: tuple[str, ...],
    recipe: str | None,
    backbone: str | None,
    init: str | None,
    views: str | None,
    objective: str | None,
    seconds: float,
    as_json: bool,
    device: str,
    plugin: tuple[str, ...],
) -> None:
    """Measure where a run's time would go.

    Real steps, part by part, and what would take less time. Nothing is kept but the cache of the images, which the run
    reads too. Half a minute, where the images are in it; of more than 5,000 that are not, 5,000 evenly spaced ones are
    decoded first.
    """
    flags = {"backbone.name": backbone, "backbone.weights": init, "views.policy": views, "objective.name": objective}
    resolved = _resolve(recipe, _given(flags, words), plugin)
    from belvedere import api

    found = api.profile(data, resolved, device=device, seconds=seconds)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(found.lines()))


@app.command()
@DATA
@LABELS
@click.option("--tile", type=click.IntRange(SMALLEST_TILE), help="Look at the tiles that images.tile would cut.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(data: str, labels: str, tile: int | None, as_json: bool) -> None:
    """Look at images before training.

    Counts, sizes, formats, duplicates, unreadable files, labels.
    """
    from belvedere import api

    found = api.check(data, labels=labels, tile=tile or 0)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(found.lines()))


@app.command()
@RUN
def report(run: Path) -> None:
    """Write RUN/report.html anew."""
    _check_run(run)
    from belvedere import api

    click.echo(api.report(run))


@app.command()
@RUN
@click.argument("other", type=click.Path(path_type=Path), required=False, metavar="[RUN2]")
@click.option("--data", help="Images to look at; default: those that RUN was trained on.")
@click.option("--images", type=click.IntRange(16), default=256, show_default=True, help="How many of them.")
@click.option("--out", type=click.Path(path_type=Path), help="The page; default RUN/analysis.html.")
@DEVICE
@PLUGIN
def analyze(
    run: Path, other: Path | None, data: str | None, images: int, out: Path | None, device: str, plugin: tuple[str, ...]
) -> None:
    """Write a page on the views that a run chose or learned.

    It shows them over training, and which views the network would choose now. With a second run, where both look.
    """
    for folder in (run, *([other] if other is not None else [])):
        _check_run(folder)
    for path in plugin:
        plugins.add_file(path)
    from belvedere import api

    click.echo(api.analyze(run, other, data=data, images=images, out=out, device=device))


@app.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List the recipes, or show one resolved."""
    if context.invoked_subcommand is None:
        for name in config.recipe_names():
            about = (config.RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            click.echo(f"{name:16} {about}")


@recipes.command("show")
@click.argument("recipe")
@click.argument("words", nargs=-1, metavar="[DATA] [KEY=VALUE]...")
@INIT
@click.option("--epochs", type=float, help="Budget in passes over the images.")
@DEVICE
@PLUGIN
def recipes_show(
    recipe: str,
    words: tuple[str, ...],
    init: str | None,
    epochs: float | None,
    device: str,
    plugin: tuple[str, ...],
) -> None:
    """Print every value and its origin.

    The origins: default, recipe, command line, or what it was derived from.
    Without DATA the derived values are those of full ImageNet on one CUDA device.
    """
    data = words[0] if words and "=" not in words[0] else None
    given = config.parse_overrides(words[1:] if data is not None else words)
    if epochs is not None:
        given["train.epochs"] = epochs
    if init is not None:
        given["backbone.weights"] = init
    resolved = _resolve(recipe, given, plugin)
    from belvedere import api

    click.echo(api.show_recipe(resolved, data, device=device), nl=False)


@app.command()
@RUN
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--format", "form", type=click.Choice(["timm", "safetensors", "onnx"]), default="timm", show_default=True)
def export(run: Path, out: Path, form: Literal["timm", "safetensors", "onnx"]) -> None:
    """Write a run's encoder for other programs, with a model card.

    timm: a folder that timm loads with local-dir:FOLDER. safetensors: the same files for any network, also one that
    timm does not have. onnx: pixels to features, checked against torch.
    """
    _check_run(run)
    from belvedere import api

    click.echo(api.export(run, out, form))


@app.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True)
@DEVICE
def demo(out: Path, device: str) -> None:
    """The main job on real photographs, in under 5 minutes on 2 cores."""
    from belvedere import demo as demonstration

    demonstration.run(out, device=device)


def _given(flags: dict[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    """What the user set, by flat key."""
    return {key: value for key, value in flags.items() if value is not None} | config.parse_overrides(words)


def _resolve(recipe: str | None, given: dict[str, Any], plugin: tuple[str, ...]) -> config.Resolved:
    for path in plugin:
        plugins.add_file(path)
    return config.resolve(recipe, given)


def _spread(devices: int, device: str) -> None:
    """Go on in so many processes, where there are to be several and this is none of them."""
    if devices > 1 and not launch.is_process():
        launch.spread(sys.argv[1:], devices, device)


def _check_run(run: Path) -> None:
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: is no run folder (it has no config.yaml)")


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2."""
    keep_matplotlib_inside()
    try:
        app(prog_name="belvedere", standalone_mode=False)
        sys.stdout.flush()
        launch.note_done()
    except UserError as error:
        _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        message = error.format_message().rstrip(".")
        _fail(message[:1].lower() + message[1:])
    except BrokenPipeError:  # `belvedere recipes show dino | head`; the flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)


def _fail(message: str) -> None:
    rank = int(os.environ.get("RANK", 0))
    process = f" (process {rank})" if rank else ""
    print(f"belvedere{process}: {printable(message)}", file=sys.stderr)
    sys.exit(2)
