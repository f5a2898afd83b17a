"""`jaxlm inspect`: what a model is made of, before anything is loaded."""

from jaxlm.cli.setup import Model, start
from jaxlm.core import words


def inspect(model: Model) -> None:
    """Print family, parameters (shape, type, sharding, bytes, Hugging Face's names) and totals."""
    start("cpu")
    from jaxlm.inference import inspect as inspecting
    from jaxlm.models.spec import padded_vocab

    found = inspecting.inspect(model)
    spec = found.spec
    print(f"{model}: {found.kind}, family {found.family}")
    print(
        f"{spec.layers} layers, {spec.embed} wide, {spec.vocab:,} token ids "
        f"in {padded_vocab(spec):,} rows, up to {spec.max_length:,} tokens"
    )
    if found.labels:
        print(f"scores {len(found.labels)} labels: {', '.join(found.labels)}")
    print(f"\n{inspecting.table(found)}\n")
    print(f"{words.count(found.parameters)} parameters, {words.size(found.nbytes)}")
