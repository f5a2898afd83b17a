"""`jaxlm fetch`: a model of the Hub into the local cache, where there is a network."""

from typing import Annotated

import typer


def fetch(
    name: Annotated[
        str, typer.Argument(metavar="ORG/NAME[@REVISION]", help="A model of the Hugging Face Hub.")
    ],
) -> None:
    """Download a model once; hf://ORG/NAME@COMMIT is then read from the cache, offline too."""
    from jaxlm.hub import fetch as hub

    name = name if hub.is_remote(name) else hub.SCHEME + name
    print(f"{hub.pinned(name)}\n{hub.fetch(name)}")
