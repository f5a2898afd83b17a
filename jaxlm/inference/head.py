"""A model with another head than it came with: what it has of the new one, and what is made."""

from collections.abc import Mapping
from typing import Any

from jax import Array
from jax.typing import DTypeLike

from jaxlm import families
from jaxlm.config.schema import RunConfig
from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError
from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Params
from jaxlm.families.heads import agree
from jaxlm.hub import load as folders
from jaxlm.inference.origin import Origin, labels_of
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import init_head

LABELS = "head/labels/"
"""Scores of labels: those of other labels are no beginning."""


def replaced(
    params: Params, was: Origin, spec: ModelSpec, layout: Layout, dtype: DTypeLike, key: Array
) -> Params:
    """`params`, read from `was`, with the head of `spec` instead of theirs.

    What `was` has of it is taken, such as BERT's pooler, which a masked LM does not use; the rest
    is random.
    """
    leaves = tree.flatten(params)
    made = tree.flatten(init_head(spec, layout, key, dtype))
    if was.folder:
        made |= folders.load_held(was.folder, spec, _wanted(made))
    else:
        made |= {name: leaves[name] for name in shared(was, spec, made)}
    body = {name: leaf for name, leaf in leaves.items() if not name.startswith("head/")}
    return tree.unflatten(body | made)


def same(was: Origin, config: RunConfig) -> bool:
    """Whether a run keeps the head of what it starts from: one like it, of the same labels."""
    return was.spec.head == config.model.head and agree(was.labels, labels_of(config))


def new(was: Origin, config: RunConfig, leaves: Mapping[str, Any]) -> list[str]:
    """Those among `leaves`, arrays or shapes of a run by name, that its head has new."""
    if same(was, config):
        return []
    spec = config.model
    own = {name: leaf for name, leaf in leaves.items() if name.startswith("head/")}
    known = folders.held(was.folder, spec, _wanted(own)) if was.folder else shared(was, spec, own)
    return [name for name in own if name not in known]


def shared(was: Origin, spec: ModelSpec, leaves: Mapping[str, Any]) -> set[str]:
    """Those among `leaves`, of a head, that are the same tensor in the family of `was`."""
    try:
        family = families.find(was.config) if was.config else families.fitting(was.spec)
    except CheckpointError:
        return set()
    one, other = (
        {leaf: weight.theirs for weight in family.table(each) for leaf in weight.leaves}
        for each in (was.spec, spec)
    )
    return {name for name in _wanted(leaves) if one.get(name, "") == other.get(name)}


def _wanted(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in leaves.items() if not name.startswith(LABELS)}
