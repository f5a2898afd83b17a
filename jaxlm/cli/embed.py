"""`jaxlm embed`: a vector for each text of a file."""

from typing import Annotated

import typer

from jaxlm.cli.setup import (
    Adapters,
    Force,
    Model,
    Overlong,
    Platform,
    load,
    platform_of,
    start,
)
from jaxlm.core.errors import DataError


def embed(
    model: Model,
    input: Annotated[
        str, typer.Option(help="Texts: lines of .txt, or records of .jsonl, .csv, .tsv, .parquet.")
    ],
    output: Annotated[
        str, typer.Option(help=".npy, float32 [texts, D]; .jsonl or .parquet, beside the texts.")
    ],
    field: Annotated[str, typer.Option(help="The column of records that holds the text.")] = "text",
    pool: Annotated[
        str | None,
        typer.Option(
            help="mean, first or last state of a text; by default as the model was trained, else "
            "an encoder's mean, a decoder's last.",
            show_default=False,
        ),
    ] = None,
    overlong: Overlong = "error",
    adapter: Adapters = None,
    force: Force = False,
    platform: Platform = None,
) -> None:
    """Write a vector of length 1 for each text of a file, in the order of the file."""
    start(platform or platform_of(model))
    from jaxlm.data import lines
    from jaxlm.inference import embed as embedding
    from jaxlm.inference.output import check_output

    check_output(output, input, embedding.WRITERS)
    found = list(lines.texts(input, field))
    if not found:
        raise DataError(input, "holds no text; name another file")
    loaded = load(model, adapter, force=force)
    where, texts = zip(*found, strict=True)
    vectors = loaded.embed(texts, pool, overlong=overlong, where=where)
    embedding.write(output, texts, vectors)
    print(f"{output}: {len(texts)} vectors of {vectors.shape[1]} numbers")
