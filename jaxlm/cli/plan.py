"""`jaxlm plan`: what a run would take on devices that are not here."""

from typing import Annotated

import typer

from jaxlm.cli.setup import Arguments, split, start


def plan(
    arguments: Arguments = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME:SIZE",
            help="What it runs on: h200:8, h100:256, v5e:4x4, v5p:8x8x8, v5e:16x16*4 (4 slices).",
        ),
    ] = "",
    compile_: Annotated[
        bool,
        typer.Option("--compile", help="Compile the step for that TPU too; needs jaxlm[tpu]."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a run takes of memory, time and money on devices that are not here.

    Prints the bytes of one device by what takes them and what would make them fit, the time of a
    step with its share of the peak, the whole run, the best meshes, and what adapters would need.
    """
    import json

    from jaxlm.config.load import load
    from jaxlm.plan.devices import machine

    on = machine(device)
    config = load(*split(arguments))
    start("cpu")
    from jaxlm.plan import ahead, page, sketch

    model = sketch.model(sketch.resolved(config), on.device.platform)
    found = sketch.sketch(model, on)
    said = page.plan(found, ahead.compiled(found) if compile_ else None)
    print(json.dumps(said, indent=1) if as_json else page.text(said))
