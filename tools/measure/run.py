"""One case from its name to its complete result."""

import os

from measure import results, turns
from measure.cases import CASES, FigureCase, StepCase
from measure.pipe import Answer, Side, SideError


def measure(
    name: str,
    *,
    rounds: int,
    steps: int | None = None,
    alone: bool = False,
    texts: str | None = None,
    say: turns.Say,
) -> Answer:
    """The result of CASES[name], as `results.write` takes it.

    rounds: turns of every side. steps: in a turn, the case's own by default. alone: without torch.
    texts: a file for a case that measures on texts. Raises SideError when it cannot be measured, or
    when the sides do not compute the same.
    """
    case, before = CASES[name], os.getloadavg()[0]
    if isinstance(case, StepCase):
        measured = turns.run(case, rounds=rounds, steps=steps, alone=alone, say=say)
        if wrong := turns.same_network(measured):
            raise SideError(f"the sides differ: {'; '.join(wrong)}")
    else:
        assert isinstance(case, FigureCase)
        side = Side("figures", {"JAX_ENABLE_COMPILATION_CACHE": "false"})
        shape = {**case.shape, "texts": texts} if texts else case.shape
        order = {"do": "measure", "function": case.function, "shape": shape}
        try:
            measured = side.ask({**order, "rounds": rounds, "steps": steps or case.steps})
        finally:
            side.close()
    return results.complete(name, case, measured, (before, os.getloadavg()[0]))
