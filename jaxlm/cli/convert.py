"""`jaxlm convert`: models out to Hugging Face folders, and two models compared."""

from pathlib import Path
from typing import Annotated

import typer

from jaxlm.cli.setup import EXIT_CODES, Model, start
from jaxlm.core.errors import CheckpointError, ConfigError

app = typer.Typer(help="Exchange models with Hugging Face, verified.", no_args_is_help=True)


@app.command("export", epilog=EXIT_CODES)
def export(
    model: Model,
    out: Annotated[str, typer.Argument(metavar="OUT", help="The folder to make.")],
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; the weights' own by default."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
    verify: Annotated[
        bool, typer.Option(help="Load what was written and compare it with the model.")
    ] = True,
) -> None:
    """Write a model as a Hugging Face folder that transformers and its relatives load."""
    start("cpu")
    from jaxlm.hub.shards import shard_bytes
    from jaxlm.inference import export
    from jaxlm.inference import verify as comparing

    family = export.export(model, out, dtype=dtype, max_shard_bytes=shard_bytes(max_shard_size))
    print(f"{out}: {family.architecture}")
    if verify:
        _report(comparing.verify(model, out, receipt=Path(out)))


@app.command("verify", epilog=EXIT_CODES)
def verify(
    a: Annotated[str, typer.Argument(metavar="A", help="A run or a Hugging Face folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="Text to compare on; one of ours by default.")
    ] = None,
    receipt: Annotated[str, typer.Option(help="Folder for receipt.json.")] = ".",
) -> None:
    """Compare two models: scores, tokenizer, special tokens and configuration."""
    start("cpu")
    from jaxlm.inference import verify as comparing

    try:
        given = Path(text).read_text(encoding="utf-8") if text else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--text", f"{text} cannot be read as UTF-8 text: {error}") from None
    _report(comparing.verify(a, b, text=given, receipt=Path(receipt)))


def _report(found: dict) -> None:
    for name, value in found["figures"].items():
        print(f"{name:<28}{value:.3g}" if isinstance(value, float) else f"{name:<28}{value}")
    print(f"{'verdict':<28}{found['verdict']}")
    if found["verdict"] != "equal":
        raise CheckpointError(found["b"]["path"], "is not the same model: " + found["reason"])
