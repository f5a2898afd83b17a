"""What a family must do with a golden fixture, for the tests and for the table of the docs.

Nothing here knows a family: what can be asked of one is seen from its spec and its inputs.
"""

import re
from functools import cache

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
from families import golden
from safetensors.numpy import load_file, save_file

from jaxlm.hub.load import load_params, open_folder
from jaxlm.hub.save import lazy
from jaxlm.inference.generate import Generator
from jaxlm.inference.model import Model
from jaxlm.models.transformer import make_forward

MESH = {"fsdp": 4, "tensor": 2}


@cache
def opened(name):
    """The folder of a fixture, its configuration read."""
    return open_folder(golden.folder(name))


@cache
def loaded(name):
    """The fixture's parameters in its own type."""
    return load_params(opened(name), networks.layout())


@cache
def model(name, **mesh):
    """The fixture's model as it answers, in float32, on one device or a mesh."""
    layout = networks.layout(**mesh)
    if mesh:
        params = load_params(opened(name), layout, jnp.float32)
    else:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), loaded(name))
    return Model(params, opened(name).spec, None, layout, jnp.float32)


def difference(name, **mesh):
    """The largest difference from the logits of transformers, as a share of the largest of them."""
    apart = []
    for given, right in golden.inputs(name):
        found = np.asarray(model(name, **mesh).logits(**given))
        assert found.shape == right.shape
        if "mask" in given and right.ndim == 3:  # what stands at padding is nobody's matter
            found, right = found[given["mask"]], right[given["mask"]]
        apart.append(np.abs(found - right).max() / np.abs(right).max())
    return float(max(apart))


def in_every_type(name, out):
    """The parameters from a file of each type: float16's is made in the empty folder `out`."""
    file = {key: x.astype(np.float16) for key, x in in_file(name).items()}
    save_file(file, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_bytes((golden.folder(name) / "config.json").read_bytes())
    return {
        "float32": model(name, **MESH).params,
        "bfloat16": loaded(name),
        "float16": load_params(open_folder(out), networks.layout()),
    }


def in_file(name):
    """The tensors of a fixture."""
    return load_file(golden.folder(name) / "model.safetensors")


def is_file(name, params, dtype):
    """Whether an export of `params` holds the fixture's tensors in `dtype`, byte for byte.

    But for those that the family's table names because nothing reads them.
    """
    folder = opened(name)
    made = {key: each.make() for key, each in lazy(params, folder.spec, folder.family).items()}
    unread = re.compile("|".join(folder.family.ignored) or "^$")
    kept = {key: x for key, x in in_file(name).items() if key in made or not unread.search(key)}
    return _bits(made) == _bits({key: x.astype(dtype) for key, x in kept.items()})


def _bits(tensors):
    return {key: (x.dtype, x.shape, x.tobytes()) for key, x in tensors.items()}


def generates(name):
    """Whether the fixture's network can continue a text."""
    spec = opened(name).spec
    return spec.structure != "encoder" and not spec.head.labels


def room(name):
    """How long a row may be where the cache may change no token.

    A rope whose waves depend on the length turns what comes later otherwise. What the cache holds
    of a dynamic one is not turned again, here as in transformers: rows stay within the trained
    length. Those of a longrope begin beyond it in `starts`, as every row of `without_cache` is.
    """
    rope = opened(name).spec.rope
    return rope.original_length if rope.scaling == "dynamic" else golden.LENGTH


def starts(name):
    """(two prompts of different lengths, the first over the window; how many tokens to add)."""
    spec, given = opened(name).spec, golden.inputs(name)[0][0]
    if "source" in given:
        rows = zip(given["source"], given["source_mask"], strict=True)
        return [row[real].tolist() for row, real in rows], 12
    longest = max(10, spec.window.size + 1)
    if spec.rope.scaling == "longrope":
        longest = max(longest, spec.rope.original_length + 1)
    prompts = [given["tokens"][0, :longest].tolist(), given["tokens"][1, :3].tolist()]
    return prompts, min(12, room(name) - longest)


def with_cache(name):
    """Greedy continuations of both prompts at once, padded to one length."""
    spec, (prompts, count) = opened(name).spec, starts(name)
    generator = Generator(make_forward(spec, networks.layout(), jnp.float32), spec)
    steps = generator.tokens(model(name).params, prompts, max_tokens=count)
    return np.stack([*steps], axis=1).tolist()


def without_cache(name):
    """The same, each token from the logits of the whole row so far."""
    (prompts, count), given = starts(name), golden.inputs(name)[0][0]
    source = {key: x for key, x in given.items() if key.startswith("source")}
    begun = [[opened(name).spec.encoder.start]] * len(prompts) if source else prompts
    rows, ends = np.zeros((len(begun), room(name)), np.int32), [len(row) for row in begun]
    for row, start in zip(rows, begun, strict=True):
        row[: len(start)] = start
    for step in range(count):
        scores = np.asarray(model(name).logits(rows, **source))
        for row, end, each in zip(rows, ends, scores, strict=True):
            row[end + step] = each[end + step - 1].argmax()
    return [row[end : end + count].tolist() for row, end in zip(rows, ends, strict=True)]


def trained(name):
    """(the loss of one step of causal language modeling, of the next one, the gradient's norm)."""
    spec = opened(name).spec
    state, step = networks.trainer(spec, optax.sgd(1e-2), start=model(name).params)
    batch = networks.batch()
    state, first = step(state, batch)
    _, second = step(state, batch)
    losses = [float(metrics["loss"] / metrics["weight"]) for metrics in (first, second)]
    return *losses, float(first["grad_norm"])
