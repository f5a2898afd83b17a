"""`jaxlm adapter`: LoRA adapters shown, compared, merged into a model and taken out of a run."""

from typing import Annotated

import typer

from jaxlm.cli.setup import EXIT_CODES, Dtype, Force, Model, Out, Run, ShardSize, figures, start

app = typer.Typer(help="Show, compare, merge and export LoRA adapters.", no_args_is_help=True)

Adapter = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="A folder with adapter_config.json.")
]


@app.command("show", epilog=EXIT_CODES)
def show(
    adapter: Adapter,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Its base, to say how much of it changes."),
    ] = None,
    force: Force = False,
) -> None:
    """Print what an adapter changes: rank, alpha, parameters and norms by kind of layer."""
    start("cpu")
    from jaxlm.inference import adapter_tables

    print(adapter_tables.show(adapter, base, force=force))


@app.command("diff", epilog=EXIT_CODES)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="An adapter.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
) -> None:
    """Print the layers in which two adapters differ, and by how much."""
    start("cpu")
    from jaxlm.inference import adapter_tables

    print(adapter_tables.diff(a, b))


@app.command("merge", epilog=EXIT_CODES)
def merge(
    base: Model,
    adapter: Adapter,
    out: Out,
    dtype: Dtype = None,
    max_shard_size: ShardSize = "5GB",
    force: Annotated[
        bool,
        typer.Option(help="Take an adapter of another base too, and write whatever is lost."),
    ] = False,
) -> None:
    """Write a model with an adapter merged into it, measured against the two of them."""
    start("cpu")
    from jaxlm.hub.shards import shard_bytes
    from jaxlm.inference import merging

    size = shard_bytes(max_shard_size)
    figures(merging.merge(base, adapter, out, dtype=dtype, max_shard_bytes=size, force=force))


@app.command("export", epilog=EXIT_CODES)
def export(run: Run, out: Out) -> None:
    """Write the adapter of a LoRA run as PEFT has it, read back and compared."""
    start("cpu")
    from jaxlm.inference import adapters

    print(f"{out}: adapter, {adapters.export_adapter(run, out).model_type}")
    adapters.check(run, out)
