"""A run, an import or a Hugging Face folder, written as a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

import jax

import jaxlm
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.families.family import Family
from jaxlm.hub.save import save
from jaxlm.inference.run import Opened, read
from jaxlm.models import lora


def export(source: str, out: str, *, dtype: str | None, max_shard_bytes: int) -> Family:
    """Write the model at `source` into the new folder `out`; adapters are merged.

    dtype: of the weights; their own by default. Raises ConfigError, CheckpointError and
    StorageError as `read` and `hub.save` do.
    """
    model = read(source, Layout(make_mesh({}, jax.devices()[:1])))
    return save(
        out,
        lora.merge(model.params),
        model.spec,
        model.tokenizer,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        config=model.config,
        card=card(Path(source), model),
    )


def card(source: Path, model: Opened) -> str:
    """README.md: what the model is, how to load it, and the record of the run that made it."""
    numbers = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    record = source / "record.json"
    kept: dict[str, Any] = json.loads(record.read_bytes()) if record.is_file() else {}
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {source.resolve().name}",
        "",
        f"{numbers:,} parameters, {model.spec.layers} layers, {model.spec.embed} wide, "
        f"{model.spec.vocab:,} token ids, up to {model.spec.max_length:,} tokens. "
        f"Written by jaxlm {jaxlm.__version__}.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        "```",
    ]
    if kept:
        lines += ["", "## The run", "", "```json", json.dumps(kept, indent=2), "```"]
    return "\n".join(lines) + "\n"
