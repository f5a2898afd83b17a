"""`jaxlm launch`: a job of several processes, here or on a cluster."""

from typing import Annotated

import typer

from jaxlm.cli.setup import EXIT_CODES
from jaxlm.core.errors import ConfigError

app = typer.Typer(help="Start a job of several processes.", no_args_is_help=True)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- VERB ...", help="What each process runs, as after `jaxlm`."),
]


@app.command("local", epilog=EXIT_CODES, context_settings={"ignore_unknown_options": True})
def local(
    words: Words = None,
    count: Annotated[int, typer.Option("-n", min=1, help="Processes.")] = 2,
    cpu_devices: Annotated[
        int | None,
        typer.Option(min=1, help="So many devices each, on the CPU; else the GPUs are shared out."),
    ] = None,
) -> int:
    """Run several processes of one job on this machine; the first failure ends all."""
    from jaxlm.launch import local

    if not words or words[0] not in VERBS:
        what = f"{words[0]!r} is no verb of several processes" if words else "runs nothing"
        raise ConfigError("launch local", f"{what}; write: jaxlm launch local -n 2 -- train ...")
    return local.run(words, count, cpu_devices)


VERBS = ("train", "doctor")
"""What several processes do together."""
