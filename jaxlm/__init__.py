"""jaxlm: pretrain and fine-tune language models with one JAX program."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxlm.inference.model import Model as Model
    from jaxlm.inference.model import load as load
    from jaxlm.inference.slots import Slots as Slots

_LAZY = {
    "load": "jaxlm.inference.model",
    "Model": "jaxlm.inference.model",
    "Slots": "jaxlm.inference.slots",
}


def __getattr__(name: str) -> Any:
    """Import jax only when something that needs it is used, so that `jaxlm --help` is quick."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'jaxlm' has no attribute {name!r}")
