"""`jaxlm convert`: models in from Hugging Face folders and out to them, and two compared."""

from pathlib import Path
from typing import Annotated

import typer

from jaxlm.cli.setup import EXIT_CODES, Dtype, Model, Out, ShardSize, figures, start
from jaxlm.core.errors import CheckpointError, ConfigError

app = typer.Typer(help="Exchange models with Hugging Face, verified.", no_args_is_help=True)


@app.command("import", epilog=EXIT_CODES)
def import_(
    folder: Annotated[str, typer.Argument(metavar="HF_DIR", help="A Hugging Face folder.")],
    out: Out,
    dtype: Dtype = None,
    verify: Annotated[
        bool, typer.Option(help="Load what was written and compare it with the folder.")
    ] = True,
) -> None:
    """Write a Hugging Face folder as a checkpoint of ours, which every verb opens."""
    start("cpu")
    from jaxlm.inference import verify as comparing
    from jaxlm.inference.imported import import_folder
    from jaxlm.inference.run import to_stderr

    found = import_folder(folder, out, dtype=dtype, warn=to_stderr)
    print(f"{out}: {found.family.model_type}")
    if verify:
        _report(comparing.verify(folder, out, receipt=Path(out)))


@app.command("export", epilog=EXIT_CODES)
def export(
    model: Model,
    out: Out,
    dtype: Dtype = None,
    max_shard_size: ShardSize = "5GB",
    merge: Annotated[
        bool, typer.Option("--merge", help="Of a LoRA run the whole model, not the adapter.")
    ] = False,
    verify: Annotated[
        bool, typer.Option(help="Load what was written and compare it with the model.")
    ] = True,
) -> None:
    """Write a model as a Hugging Face folder that transformers and its relatives load.

    Of a LoRA run with `init`, the adapter as PEFT has it.
    """
    start("cpu")
    from jaxlm.hub.shards import shard_bytes
    from jaxlm.inference import adapters, export
    from jaxlm.inference import verify as comparing

    if not merge and adapters.is_lora_run(model):
        if dtype:
            raise ConfigError("--dtype", "is of whole models; add --merge")
        print(f"{out}: adapter, {adapters.export_adapter(model, out).model_type}")
        if verify:
            adapters.check(model, out)
        return
    family = export.export(model, out, dtype=dtype, max_shard_bytes=shard_bytes(max_shard_size))
    print(f"{out}: {family.model_type}")
    if verify:
        _report(comparing.verify(model, out, receipt=Path(out)))


@app.command("verify", epilog=EXIT_CODES)
def verify(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A run, an import or a Hugging Face folder.")
    ],
    b: Annotated[
        str | None, typer.Argument(metavar="B", help="Another.", show_default=False)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="transformers", help="Compare A with what transformers makes of it."),
    ] = None,
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
    if against:
        if b is not None:
            raise ConfigError("--against", f"compares {a} alone; leave {b} out")
        from jaxlm.inference.peer import verify_against

        _report(verify_against(a, against, text=given, receipt=Path(receipt)))
    elif b is None:
        raise ConfigError("convert verify", "name another model, or add --against transformers")
    else:
        _report(comparing.verify(a, b, text=given, receipt=Path(receipt)))


def _report(found: dict) -> None:
    figures(found["figures"])
    print(f"{'verdict':<28}{found['verdict']}")
    if found["verdict"] != "equal":
        raise CheckpointError(found["b"]["path"], "is not the same model: " + found["reason"])
