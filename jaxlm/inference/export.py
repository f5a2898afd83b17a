"""A run, an import or a Hugging Face folder, written as a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

import jax

import jaxlm
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.families.family import Family
from jaxlm.families.heads import LM, NONE, SEQUENCE, TOKENS, head_of
from jaxlm.hub.save import save
from jaxlm.inference.run import Opened, read
from jaxlm.models import lora
from jaxlm.models.quantize import total


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
        generation=model.generation,
        labels=model.labels,
        pool=model.pool,
        card=card(Path(source), model),
    )


USES = {
    ("decoder", LM): ("text-generation", "AutoModelForCausalLM"),
    ("encoder", LM): ("fill-mask", "AutoModelForMaskedLM"),
    ("encoder-decoder", LM): ("text2text-generation", "AutoModelForSeq2SeqLM"),
    SEQUENCE: ("text-classification", "AutoModelForSequenceClassification"),
    TOKENS: ("token-classification", "AutoModelForTokenClassification"),
    NONE: ("feature-extraction", "AutoModel"),
}
"""What the Hub calls a use, and the class of transformers for it, by structure and head."""


def card(source: Path, model: Opened) -> str:
    """README.md: what the model is, how to load it, and the record of the run that made it."""
    numbers = total(model.params)
    record = source / "record.json"
    kept: dict[str, Any] = json.loads(record.read_bytes()) if record.is_file() else {}
    kind = head_of(model.spec)
    use, auto = USES[(model.spec.structure, LM) if kind == LM else kind]
    lines = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {use}",
        "---",
        "",
        f"# {source.resolve().name}",
        "",
        f"{numbers:,} parameters, {model.spec.layers} layers, {model.spec.embed} wide, "
        f"{model.spec.vocab:,} token ids, up to {model.spec.max_length:,} tokens. "
        f"Written by jaxlm {jaxlm.__version__}.",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        "```",
    ]
    if kept:
        lines += ["", "## The run", "", "```json", json.dumps(kept, indent=2), "```"]
    return "\n".join(lines) + "\n"
