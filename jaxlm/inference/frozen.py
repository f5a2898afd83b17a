"""How a run stores what it starts from: what it freezes in fewer bits than what it trains.

Leaves are made of what is read one after the other, of a Hugging Face folder slice by slice, so
that a model which is quantized is never there whole.
"""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlm.config.schema import Lora, RunConfig
from jaxlm.core import tree
from jaxlm.core.errors import ConfigError
from jaxlm.core.mesh import Layout
from jaxlm.core.parts import LOWER, whole
from jaxlm.core.tree import Mask, Params
from jaxlm.models import lora, quantize
from jaxlm.models.axes import AXES


class Store:
    """What becomes of each parameter that a run reads."""

    def __init__(self, config: RunConfig, base: Params, params: Params, live: Mask, layout: Layout):
        """base: the parameters of `init` as ShapeDtypeStructs in `param_dtype`; params: as the run
        has them, were nothing quantized; live: the names in it that train.

        Raises ConfigError where nothing is frozen, for a kernel of which only some layers are, and
        for what cannot be stored or sharded so.
        """
        kind, self._lora, self._layout = config.frozen_dtype, config.lora, layout
        self._base, self._param_dtype = tree.flatten(base), config.param_dtype
        self._frozen_dtype = "bfloat16" if kind in quantize.KINDS else kind
        left = [n for n in tree.flatten(params) if n not in live and "/lora_" not in n]
        if not left:
            raise ConfigError(
                "frozen_dtype", "nothing is frozen; leave it out, or add lora.rank=16"
            )
        kernels = {n: x for n, x in self._base.items() if re.search(quantize.KERNELS, n)}
        self._kinds = {n: kind for n in kernels if n not in live and kind in quantize.KINDS}
        if kind in quantize.KINDS and any(f"/{LOWER}/" in n for n in left):
            what = f"{kind} is of whole kernels, and last_layers trains some layers of theirs"
            raise ConfigError("frozen_dtype", f"{what}; use bfloat16")
        if kind in quantize.KINDS and not self._kinds:
            raise ConfigError("frozen_dtype", f"{kind} is of kernels, and all train; use bfloat16")
        for name in self._kinds:
            quantize.check(name, kernels[name], kind, layout)
        self._partly = {whole(n) for n in live}
        self._begun = frozenset()
        if config.lora.init == "loftq":
            targets = lora.select(base, config.lora.targets)
            lora.check_init(targets, config.lora.rank, "loftq", quantized=bool(self._kinds))
            self._begun = frozenset(targets)
        self._made: dict[str, Any] = {}

    def shapes(self) -> Params:
        """All that is made, as ShapeDtypeStructs with shardings."""
        made = [jax.eval_shape(partial(self._leaf, name), x) for name, x in self._base.items()]
        every = {name: leaf for leaves in made for name, leaf in leaves.items()}
        return self._layout.placed(tree.unflatten(every), AXES)

    def slice(self, name: str, x: Any) -> dict[str, Any]:
        """What becomes of one slice of a leaf, a layer's or an expert's, by name."""
        if name not in self._kinds:
            return self._slice(name, x)
        if name not in self._made:
            inputs = quantize.slices(name)[1]
            self._made[name] = jax.jit(partial(self._slice, name, inputs=inputs))
        return self._made[name](x)

    def leaf(self, name: str, x: Array) -> dict[str, Array]:
        """What becomes of a whole leaf, on the mesh."""
        made = partial(self._leaf, name)
        like = tree.unflatten(jax.eval_shape(made, x))
        lies = tree.flatten(self._layout.shardings(like, AXES))
        return jax.jit(made, out_shardings=lies)(x)

    def every(self, params: Params) -> Params:
        """What becomes of each of `params`, one after the other."""
        leaves, made = tree.flatten(params), {}
        for name in list(leaves):
            made |= self.leaf(name, leaves.pop(name))
        return tree.unflatten(made)

    def _slice(self, name: str, x: Any, inputs: int = 0) -> dict[str, Any]:
        if name not in self._kinds:
            partly = name in self._partly
            kind = jnp.dtype(self._param_dtype if partly else self._frozen_dtype)
            return {name: x.astype(kind, copy=False)}
        kind = self._kinds[name]
        if name in self._begun:
            made = lora.compensated(x, kind, inputs, self._lora.rank, _scale(self._lora))
        else:
            made = quantize.quantize(x, kind, inputs)
        return {name.removesuffix("kernel") + part: leaf for part, leaf in made.items()}

    def _leaf(self, name: str, x: Array) -> dict[str, Array]:
        one = partial(self._slice, name)
        return quantize.over_slices(name, one, x) if name in self._kinds else one(x)


def typed(config: RunConfig, params: Params, live: Mask) -> Params:
    """`params` with what trains in `param_dtype`, and what is frozen as `frozen_dtype` says.

    Adapters, and what is quantized, stay as they are.
    """
    kind = config.frozen_dtype
    frozen = "bfloat16" if kind in quantize.KINDS else kind

    def one(name: str, leaf: Any) -> Any:
        if "/lora_" in name or name.rpartition("/")[2] in quantize.PARTS:
            return leaf
        return leaf.astype(jnp.dtype(config.param_dtype if name in live else frozen))

    return tree.map_named(one, params)


def _scale(its: Lora) -> float:
    return lora.scaling(its.rank, its.alpha, its.rslora)
