"""Options of transformers: each that changes what it computes is read here, or refused by name."""

import inspect
import json
import re

import numpy as np
import pytest
from families import golden

from jaxlm.core.errors import CheckpointError
from jaxlm.families import find
from jaxlm.families.config import ABOUT, NEUTRAL

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

UNSEEN = ABOUT | {"return_dict", "torchscript"}
"""Keys that say what a file is, and how the answer is handed out."""
MASKED = {"pad_token_id"}
"""What says where a text ends, whose last token a decoder classifies by: here the mask does."""
ABSENT = [True, False, 3, "relu"]
"""Values of a key that is not there."""


def known(values):
    """Every key that transformers has for a network or asks for while it runs, and its value."""
    net = golden.network(values)
    config = json.loads(net.config.to_json_string(use_diff=False))
    rooms = inspect.getmodule(type(net)), transformers.masking_utils
    asked = "".join(inspect.getsource(room) for room in rooms)
    others = set(re.findall(r"config, \"(\w+)\"", asked)) | NEUTRAL | find(values).neutral
    return dict.fromkeys(others) | config | values


def instead(value):
    """Other values that a key may have."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, 3 * value, 0]
    if isinstance(value, dict):
        parts = [{**value, key: other} for key, one in value.items() for other in instead(one)]
        return [*parts, {**value, "odd": 1}]
    if isinstance(value, list):
        return [value[::-1], value[1:]]
    return [other for other in (["relu", "silu"] if value else ABSENT) if other != value]


def noticed(values, changed):
    """Whether our spec is another, or an error."""
    try:
        return find(values).spec(changed) != find(values).spec(values)
    except CheckpointError:
        return True


class Theirs:
    """What transformers computes with the weights of a fixture."""

    def __init__(self, name):
        self.values = golden.values(name)
        kind = type(golden.network(self.values))
        self.weights = kind.from_pretrained(golden.folder(name), dtype="float32").state_dict()
        self.given = golden.inputs(name)[0][0]
        self.right = self.logits({})
        assert self.right is not None

    def logits(self, changes):
        """Of the changed values; None when it refuses them."""
        try:
            net = golden.network(self.values | changes)
            net.load_state_dict(self.weights)
            return golden.logits(net, self.given)
        except Exception:
            return None

    def moved_by(self, changes):
        """Those of the changes that it takes and that change a logit."""
        found = self.logits(dict(changes))
        if not changes or (found is not None and np.allclose(found, self.right, atol=1e-5)):
            return []
        if len(changes) == 1:
            return [] if found is None else changes
        middle = len(changes) // 2
        return self.moved_by(changes[:middle]) + self.moved_by(changes[middle:])


@pytest.mark.parametrize("name", golden.NAMES)
def test_what_is_not_noticed_changes_no_logit(name):
    """Every key, one after the other, has other values: those that leave our spec as it is."""
    theirs = Theirs(name)
    values, rounds = theirs.values, {}
    unseen = UNSEEN | (MASKED if find(values).spec(values).head.pool == "last" else set())
    for key, value in known(values).items():
        others = [other for other in instead(value) if other != values.get(key)]
        for count, other in enumerate(others if key not in unseen else []):
            if not noticed(values, values | {key: other}):
                rounds.setdefault(count, []).append((key, other))
    assert [theirs.moved_by(changes) for changes in rounds.values()] == [[]] * len(rounds)
