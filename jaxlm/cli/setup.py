"""What every verb's file needs: the exit codes as help shows them, and the choice of devices."""

import os
from typing import Annotated, Any

import typer

EXIT_CODES = (
    "Exit codes: 0 done, or nothing left to do; 1 internal error; 2 configuration or command line; "
    "3 data; 4 checkpoint, weights, owned run or failed verification; 5 numeric; 6 cluster; "
    "7 storage; 8 out of memory; 75 stopped by a signal and saved, run again to continue; "
    "124 watchdog; 130 interrupted twice. --debug anywhere on the line shows the traceback."
)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run, an import or a Hugging Face folder.")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, for example runs/run.")]
Out = Annotated[str, typer.Argument(metavar="OUT", help="The folder to make.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; the weights' own by default.")
]
Platform = Annotated[
    str | None,
    typer.Option(help="auto, cpu, gpu or tpu; the run's own by default.", show_default=False),
]
ShardSize = Annotated[str, typer.Option(help="Largest file of weights.")]


def figures(found: dict[str, Any]) -> None:
    """Print names and values in two columns."""
    for name, value in found.items():
        print(f"{name:<28}{value:.3g}" if isinstance(value, float) else f"{name:<28}{value}")


def platform_of(run: str) -> str:
    """Where a run was trained; auto for what is no run, which whoever loads it will say."""
    from jaxlm.config.load import load

    config = os.path.join(run, "config.yaml")
    return load(config).platform if os.path.isfile(config) else "auto"


def start(platform: str) -> None:
    """Choose where jax computes and where it keeps compiled programs, before it is imported."""
    from jaxlm.core.platform import choose_platform, use_compile_cache

    choose_platform(platform)
    use_compile_cache()
