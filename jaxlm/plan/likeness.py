"""What sets a run apart from the published ones that the step time was fitted to.

Where anything does, how far off the time may be is not known, and the plan says so.
"""

import numpy as np

from jaxlm.core.words import count
from jaxlm.plan.sketch import Sketch
from jaxlm.plan.steptime import fitted, table

WHOLE = "clm", "sft"
"""Objectives whose head computes every place of a row, as that of the published runs does."""


def unlike(sketch: Sketch) -> list[str]:
    """Words that end "this run is ..."; none where there are published runs like it."""
    spec, device = sketch.model.spec, sketch.machine.device
    objective, number = sketch.model.config.objective.type, sketch.model.facts["parameters"]
    length, devices = sketch.model.columns["tokens"], sketch.machine.count
    dtype = np.dtype(sketch.step.compute_dtype)
    differs = {
        "sparse": spec.experts.count > 0,
        f"of an {spec.structure}": spec.structure != "decoder",
        f"for {objective}": objective not in WHOLE,
        "of a model that is partly frozen": sketch.model.facts["trained"] < number,
        f"of {count(number)} parameters": _outside("parameters", number),
        f"of rows of {length:,} tokens": _outside("length", length),
        "with windows of attention": 0 < spec.window.size < length,
        f"in {dtype}": dtype.itemsize != 2,
        f"on {device.name}": f"products_{device.name}" not in fitted(),
        f"on {devices:,} device{'s' * (devices > 1)}": _outside("devices", devices),
    }
    return [words for words, so in differs.items() if so]


def _outside(name: str, number: int) -> bool:
    """Whether no published run has so few or so many."""
    least, most = table()["fit"]["like"][name]
    return not least <= number <= most
