"""What every verb's file needs: the exit codes as help shows them, and the choice of devices."""

from typing import Annotated

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


def start(platform: str) -> None:
    """Choose where jax computes and where it keeps compiled programs, before it is imported."""
    from jaxlm.core.platform import choose_platform, use_compile_cache

    choose_platform(platform)
    use_compile_cache()
