"""`jaxlm generate`: a prompt continued or answered, sampled, greedily or by beam search."""

from typing import Annotated

import typer

from jaxlm.cli.setup import Adapters, Force, Model, Platform, load, platform_of, start


def generate(
    run: Model,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens of this share.")
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(min=0, help="Sample from this many likeliest tokens; 0 from all.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Root of the sampling.")] = 0,
    beams: Annotated[
        int, typer.Option(min=1, help="Search for the likeliest answer with so many beams.")
    ] = 1,
    length_penalty: Annotated[
        float, typer.Option(help="With beams: more is for longer answers; 1 is the mean.")
    ] = 1.0,
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer the prompt, by the model's chat template.")
    ] = False,
    adapter: Adapters = None,
    force: Force = False,
    platform: Platform = None,
) -> None:
    """Continue a prompt with a trained model, writing as it goes; with beams at the end."""
    start(platform or platform_of(run))
    loaded = load(run, adapter, force=force)
    pieces = loaded.stream(
        [{"role": "user", "content": prompt}] if chat else prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        beams=beams,
        length_penalty=length_penalty,
    )
    first = next(pieces, "")  # what is wrong is said before anything is written
    answers = chat or loaded.spec.structure == "encoder-decoder"  # which does not go on
    print(first if answers else prompt + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
