"""The recipes of configs/ by model and card: what they need, planned from shapes alone.

python tests/recipes.py      # the table in docs/finetuning.md
"""

import json
import re
import shlex
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp

from jaxlm.config.load import load, presets
from jaxlm.core import tree
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.inference.run import shapes, trained
from jaxlm.models.axes import AXES
from jaxlm.models.transformer import make_forward
from jaxlm.objectives.lm import language_model
from jaxlm.objectives.xent import CHUNK_BYTES
from jaxlm.plan.memory import Step, estimate
from jaxlm.training import optim
from jaxlm.training.state import inherit
from jaxlm.training.step import TrainState, train_step

PAGE = Path(__file__).parents[1] / "docs" / "finetuning.md"
BEGIN, END = "<!-- tests/recipes.py: begin -->\n\n", "\n<!-- end -->"
METHODS = ("full", "lora", "qlora")
CARDS = {24: 22, 48: 44, 80: 78, 141: 138}
"""Memory of a card as it is sold -> GB that are 92% of the least that such cards show."""
LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
}
MODELS = {
    "Llama 3 8B": LLAMA,
    "Mistral 7B": {**LLAMA, "model_type": "mistral", "vocab_size": 32768, "sliding_window": None},
    "Qwen 3 8B": {
        **LLAMA,
        "model_type": "qwen3",
        "vocab_size": 151936,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "head_dim": 128,
    },
    "Gemma 7B": {
        **LLAMA,
        "model_type": "gemma",
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
    },
}
"""The config.json of each, as far as it decides the shapes."""


def ways():
    """(method, card) -> what the first lines of the method's file add for the card."""
    found = {}
    for method in METHODS:
        for card, words in re.findall(r"^#   (\d+) GB: (.*)", presets()[method].read_text(), re.M):
            found[method, int(card)] = () if words == "nothing" else (*shlex.split(words),)
    return found


def begun(method, words, model):
    """(configuration, layout, parameters, mask, optimizer, its state) of a run, as shapes."""
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(model))
        config = inherit(load(method, [f"init={folder}", *words]))
        layout = Layout(make_mesh({}, jax.devices()[:1]))
        params = shapes(config, config.model, layout)
    mask = trained(config, params)
    live, _ = tree.partition(params, mask)
    tx = optim.build(config.optimizer, live, steps=1000, axes=AXES).tx
    return config, layout, params, mask, tx, optim.state_shapes(tx, live, layout, AXES)


@cache
def planned(method, words, model):
    """(configuration, what its step takes on a GPU) of a model of MODELS."""
    config, _, params, mask, _, state = begun(method, words, MODELS[model])
    step = Step(
        spec=config.model,
        batch=config.batch,
        length=config.length,
        microbatches=config.microbatches,
        data=1,
        fsdp=1,
        compute_dtype=jnp.bfloat16,
        chunk_bytes=16 * CHUNK_BYTES,
    )
    return config, estimate(step, params, state, mask)


def lowered(method, words, model):
    """The step of a run, before it is compiled for the device here; and what it holds, as bytes."""
    config, layout, params, mask, tx, opt_state = begun(method, words, model)
    whole = layout.sharding(())
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=whole), params, opt_state)
    row = jax.ShapeDtypeStruct((config.batch, config.length), jnp.int32, sharding=whole)
    batch = dict.fromkeys(("tokens", "targets", "segments", "positions"), row)
    batch["weights"] = jax.ShapeDtypeStruct(row.shape, jnp.float32, sharding=whole)
    step = partial(
        train_step,
        forward=make_forward(config.model, layout, jnp.bfloat16),
        objective=language_model(z_loss=0.0, shards=1),
        tx=tx,
        trainable=mask,
        microbatches=config.microbatches,
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, opt_state)))
    return jax.jit(step, donate_argnums=0).lower(state, batch, key), held


def table():
    """Recipe x card -> rows of a step, and planned GB of each model."""
    head = ("recipe", "card", "what it adds", "a step", *MODELS)
    rows = [head, ["---"] * len(head)]
    for (method, card), words in ways().items():
        uses = [planned(method, words, model) for model in MODELS]
        config = uses[0][0]
        step = f"{config.batch} x {config.length}"
        if config.microbatches > 1:
            step += f" in {config.microbatches}"
        added = " ".join(shlex.quote(word) if " " in word else word for word in words)
        gigabytes = [f"{use.total / 1e9:.1f}" for _, use in uses]
        rows.append((f"`{method}`", f"{card} GB", added and f"`{added}`", step, *gigabytes))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page(text):
    """docs/finetuning.md with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
