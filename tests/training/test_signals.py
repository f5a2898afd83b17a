"""A stop is noticed within seconds, however long a step takes, at the same step everywhere."""

import itertools
import json
import types

import pytest

from jaxlm.core import distributed
from jaxlm.training import signals


@pytest.mark.parametrize("seconds", [0.001, 0.1, 1.0, 3.0, 10.0])
def test_processes_ask_each_other_every_few_seconds_of_steps(monkeypatch, seconds):
    """The step's length is process 0's: what another measures does not count."""
    clock, asked = [0.0], []

    def gather(name, value):
        asked.append(clock[0])
        return [value, json.dumps([None, 1000.0])]

    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "gather", gather)
    monkeypatch.setattr(signals, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    ours = signals.Signals()
    for step in range(1, 20_000):
        clock[0] += seconds
        ours.asked(step)
        if clock[0] > 100:
            break
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    assert gaps and max(gaps) <= max(seconds, 5.0) + 1e-6
    assert seconds >= 4.0 or min(gaps[1:]) > signals.SECONDS / 2
