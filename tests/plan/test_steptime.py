"""The planner's step time comes near to what others have published, and moves the right way."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxlm.plan.devices import machine
from jaxlm.plan.steptime import communication, fitted, step_time, table

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import published

PUBLISHED = Path(__file__).parent / "published.yaml"
ROWS = published.rows(PUBLISHED)
LLAMA = next(row for row in ROWS if row.name.startswith("llama3-8b on h100:128"))

pytestmark = pytest.mark.once


def test_published_runs_are_predicted_within_the_stated_errors():
    errors = np.abs([row.predicted() / row.mfu - 1 for row in ROWS])
    assert len(ROWS) == 27
    assert errors.mean() < 0.08 and errors.max() < 0.22
    said = table()["fit"]["in_sample"]
    assert said["mean"] == pytest.approx(errors.mean(), abs=1e-3)
    assert said["most"] == pytest.approx(errors.max(), abs=1e-3)


def test_the_constants_are_those_that_the_fit_gives(monkeypatch):
    monkeypatch.delitem(sys.modules, "fit_planner", raising=False)
    import fit_planner

    assert fit_planner.ranges(ROWS) == table()["fit"]["like"]
    assert fit_planner.fit(ROWS) == pytest.approx(dict(fitted()), abs=5e-3)


@pytest.mark.parametrize(
    ("change", "longer"),
    [
        ({"tokens": 2 * LLAMA.load.tokens}, "products"),
        ({"again_flops": 2 * LLAMA.load.again_flops}, "products"),
        ({"attention_again": True}, "attention"),
        ({"trained": 2 * LLAMA.load.trained}, "optimizer"),
        ({"mlp": 2 * LLAMA.load.mlp}, "glue"),
        ({"filled": 0.1}, "bubble"),
    ],
)
def test_what_is_more_takes_longer(change, longer):
    before = step_time(LLAMA.load, LLAMA.machine)
    after = step_time(replace(LLAMA.load, **change), LLAMA.machine)
    assert getattr(after, longer) > getattr(before, longer) and after.total > before.total


def test_the_network_is_paid_by_who_uses_it():
    alone = replace(LLAMA.load, fsdp=1)
    assert set(communication(alone, LLAMA.machine).values()) == {0}
    within = communication(replace(alone, fsdp=8), LLAMA.machine)["fsdp"]
    beyond = communication(replace(alone, fsdp=16), LLAMA.machine)["fsdp"]
    assert beyond > within > 0
    parts = communication(replace(alone, fsdp=8, microbatches=4), LLAMA.machine)["fsdp"]
    assert parts == pytest.approx(4 * within)  # each gathers again
    frozen = communication(replace(alone, fsdp=8, trained=0), LLAMA.machine)["fsdp"]
    assert frozen == pytest.approx(2 / 3 * within)  # no gradient is scattered


def test_a_gradient_is_added_up_after_every_microbatch():
    copies = replace(LLAMA.load, fsdp=1, data=8)
    once = communication(copies, LLAMA.machine)["data"]
    size = 2 * 7 / 8 * 4 * copies.trained  # of an all-reduce, in float32
    assert once == pytest.approx(size / LLAMA.machine.device.near)
    parts = communication(replace(copies, microbatches=4), LLAMA.machine)["data"]
    assert parts == pytest.approx(4 * once)


def test_experts_are_gathered_where_they_are_and_tokens_go_to_them():
    half = LLAMA.load.parameters / 2
    load = replace(LLAMA.load, fsdp=8, experts=half, experts_trained=half)
    dense = communication(replace(load, fsdp=8), LLAMA.machine)
    split = communication(replace(load, fsdp=1, expert=8), LLAMA.machine)
    both = communication(replace(load, fsdp=2, expert=4), LLAMA.machine)
    assert dense["expert"] == 0 and split["fsdp"] == pytest.approx(dense["fsdp"] / 2)
    assert split["fsdp"] < both["fsdp"] < dense["fsdp"]
    one = load.tokens * load.embed * load.gathered * load.layers / LLAMA.machine.device.near
    times = 4 + (load.remat != "none")
    assert split["expert"] == pytest.approx(7 * times * one)
    assert both["expert"] == pytest.approx(3 * times * one)


def test_a_device_without_a_peak_has_no_time():
    assert step_time(LLAMA.load, machine("cpu:8")) is None
