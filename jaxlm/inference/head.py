"""A model with another head than it came with: what it has of the new one, and what is made."""

from collections.abc import Iterable

from jax import Array
from jax.typing import DTypeLike

from jaxlm import families
from jaxlm.core import tree
from jaxlm.core.errors import CheckpointError
from jaxlm.core.mesh import Layout
from jaxlm.core.tree import Params
from jaxlm.hub import load as folders
from jaxlm.inference.origin import Origin
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
        made |= folders.load_held(was.folder, spec, _wanted(made), layout, dtype)
    else:
        made |= {name: leaves[name] for name in shared(was, spec, made)}
    body = {name: leaf for name, leaf in leaves.items() if not name.startswith("head/")}
    return tree.unflatten(body | made)


def new(was: Origin, spec: ModelSpec, names: Iterable[str]) -> list[str]:
    """Those among `names`, the leaves of `spec`, that `was` has nothing for: of its head."""
    own = [name for name in names if name.startswith("head/")]
    if was.spec.head == spec.head:
        return []
    known = folders.held(was.folder, spec, _wanted(own)) if was.folder else shared(was, spec, own)
    return [name for name in own if name not in known]


def shared(was: Origin, spec: ModelSpec, names: Iterable[str]) -> set[str]:
    """Those among `names`, leaves of a head, that are the same tensor of the family before."""
    try:
        family = families.find(was.config) if was.config else families.fitting(was.spec)
    except CheckpointError:
        return set()
    one, other = (
        {leaf: weight.theirs for weight in family.table(each) for leaf in weight.leaves}
        for each in (was.spec, spec)
    )
    return {name for name in _wanted(names) if one.get(name, "") == other.get(name)}


def _wanted(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith(LABELS)}
