"""Against pretraining: what adapters of the same model would need."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxlm.core.errors import ConfigError
from jaxlm.plan.devices import Machine
from jaxlm.plan.meshes import ALONE, changed, of_count, ranked
from jaxlm.plan.sketch import Sketch, model, sketch

RANK = 16
ALIKE = (f"lora.rank={RANK}", "lora.targets=[all-linear]", "trainable=null", "param_dtype=bfloat16")
WAYS: dict[str, tuple[str, ...]] = {
    "LoRA": (*ALIKE, "frozen_dtype=auto"),
    "QLoRA": (*ALIKE, "frozen_dtype=nf4"),
}
"""As the presets lora and qlora."""
PLAIN = ("mesh.data=1", "mesh.fsdp=-1", "mesh.expert=1", "mesh.tensor=1", "microbatches=1")
"""What divides whatever there is."""
ROWS = 8
"""Of an update."""


class Tuned(NamedTuple):
    """One way, on so few of the devices as hold it, or on all where they do not."""

    name: str
    trained: int
    sketch: Sketch
    overrides: tuple[str, ...]


def alternatives(given: Sketch) -> list[Tuned]:
    """LoRA and QLoRA of the model on the fewest devices of its machine's kind; empty for a run
    that trains adapters already.
    """
    config = given.model.config
    if config.lora.rank or config.objective.type not in ("clm", "sft"):
        return []
    found = []
    for name, words in WAYS.items():
        asked = changed(config, (*words, *ALONE, *PLAIN, f"batch={ROWS}"))
        shapes = model(asked, given.machine.device.platform)
        best: Tuned | None = None
        for machine in _few(given):
            batch = f"batch={_batch(machine.count)}"
            try:
                here = sketch(shapes, machine, changed(asked, (batch,)))
            except ConfigError:
                continue
            option = ranked(here, 1)
            if option:
                its, more = option[0].sketch, (*words, *ALONE, batch, *option[0].overrides)
                best = Tuned(name, shapes.facts["trained"], its, more)
                if its.fits:
                    break
        if best:
            found.append(best)
    return found


def _batch(count: int) -> int:
    return -(-ROWS // count) * count


def _few(given: Sketch) -> Iterator[Machine]:
    """One device, then twice as many, up to the machine."""
    for count in (2**i for i in range((given.machine.count - 1).bit_length())):
        if found := of_count(given.machine.device, count):
            yield found
    yield given.machine
