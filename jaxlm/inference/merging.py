"""An adapter merged into its base, measured against the two of them, and written whole."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError
from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.hub.adapter import QUANTIZED, read_tensors
from jaxlm.hub.save import check_dtype, check_new, save
from jaxlm.inference import verify
from jaxlm.inference.export import card
from jaxlm.inference.model import Model
from jaxlm.inference.run import compute_dtype, read, to_stderr
from jaxlm.models import lora

LOST = 0.5
"""Most that may be lost of what the adapter changes."""


def merge(
    base: str,
    adapter: str,
    out: str,
    *,
    dtype: str | None,
    max_shard_bytes: int,
    force: bool = False,
) -> dict[str, Any]:
    """Write the model at `base` with the adapter in the folder `adapter` into the new folder `out`.

    dtype: of the weights; the base's own by default. Returns how far the merged model is from the
    base with the adapter beside it, on a text. Raises CheckpointError when that is beyond the
    tolerance of the weights' type, or most of what the adapter changes, and as
    `Model.with_adapter`, both unless `force`; and as `hub.save.save`. Nothing is then written.
    """
    check_dtype(dtype)
    check_new(Path(out))
    layout = Layout(make_mesh({}, jax.devices()[:1]))
    opened = read(base, layout)
    kind = compute_dtype(opened.compute_dtype)

    def model(params: Any) -> Model:
        return Model(params, opened.spec, opened.tokenizer, layout, kind, opened.config)

    if kept := read_tensors(adapter)[1].get(QUANTIZED):
        what = f"was trained beside kernels in {kept}, and is measured beside whole ones"
        to_stderr(f"{adapter} {what}; jaxlm convert export RUN --merge writes what was trained")
    plain = model(opened.params)
    applied = plain.with_adapter(adapter, force=force)
    params = applied.params
    if dtype == "float32":  # before what is added is rounded
        params = tree.widened(params)
    params = lora.merge(params)
    if dtype:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), params)
    merged = model(params)
    figures = measured(plain, applied, merged)
    if (reason := _reason(figures, merged)) and not force:
        raise CheckpointError(out, f"{reason}; keep the adapter beside its base, or add --force")
    save(
        out,
        params,
        opened.spec,
        opened.tokenizer,
        max_shard_bytes=max_shard_bytes,
        config=opened.config,
        generation=opened.generation,
        labels=opened.labels,
        card=card(Path(base), opened),
    )
    return figures


def measured(plain: Model, applied: Model, merged: Model) -> dict[str, Any]:
    """How far the merged model is from the applied adapter, and that from the base."""
    tokens = verify.rows(plain, verify.TEXT)
    base, beside, whole = (verify.scores(model, tokens) for model in (plain, applied, merged))
    figures, changed = verify.apart(beside, whole), verify.apart(base, beside)["as a share"]
    return {
        "tokens compared": tokens.shape[1],
        **figures,
        "tolerance": verify.TOLERANCES[verify.itemsize(merged)],
        "changed by the adapter": changed,
        "lost of that": figures["as a share"] / max(changed, verify.TOLERANCES[4]),
    }


def _reason(figures: dict[str, Any], merged: Model) -> str:
    """Why the merged model is not what was asked for, or nothing."""
    share, bound, lost = (figures[k] for k in ("as a share", "tolerance", "lost of that"))
    kinds = {leaf.dtype.name for leaf in jax.tree.leaves(merged.params)}
    rounded = "" if kinds == {"float32"} else f", rounded to {'/'.join(sorted(kinds))}"
    if not share <= bound:  # a NaN is not
        return f"its scores are {share:.3g} of the largest apart, more than {bound:g}{rounded}"
    if lost > LOST:
        return f"{100 * lost:.0f}% of what the adapter changes is lost{rounded}"
    return ""
