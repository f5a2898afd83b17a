import math

import pytest

from jaxlm.config import optimizers as keys
from jaxlm.training.schedule import SCHEDULES, schedule, unfinished

PEAK, STEPS, WARMUP = 2e-3, 100, 10


def falls(kind, share):
    """Of the peak at a share of what follows the warm-up: the closed forms of the docstrings."""
    return {
        "constant": 1.0,
        "linear": 1 - share * (1 - 0.25),
        "cosine": 0.25 + (1 - 0.25) * (1 + math.cos(math.pi * share)) / 2,
        "wsd": 1 - max(0.0, share * 90 - 70) / 20 * (1 - 0.25),
        "inverse_sqrt": math.sqrt(10 / (10 + share * 90)),
    }[kind]


SECTIONS = {
    "constant": keys.Constant(warmup=WARMUP),
    "linear": keys.Linear(warmup=WARMUP, final=0.25),
    "cosine": keys.Cosine(warmup=WARMUP, final=0.25),
    "wsd": keys.WarmupStableDecay(warmup=WARMUP, final=0.25, decay=0.2),
    "inverse_sqrt": keys.InverseSquareRoot(warmup=WARMUP),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("step", [0, 4, 9, 10, 55, 79, 80, 90, 99, 100])
def test_a_schedule_is_its_formula(kind, step):
    rate = schedule(SECTIONS[kind], PEAK, STEPS)
    right = (step + 1) / WARMUP if step < WARMUP else falls(kind, (step - WARMUP) / 90)
    assert float(rate(step)) == pytest.approx(PEAK * right, rel=1e-5)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_first_update_has_a_rate_and_none_exceeds_the_peak(kind):
    for warmup in (1, 3):
        section = SECTIONS[kind].model_copy(update={"warmup": warmup})
        rates = [float(schedule(section, PEAK, STEPS)(step)) for step in range(STEPS + 20)]
        assert rates[0] > 0 and max(rates) == pytest.approx(PEAK)
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_without_warmup_the_peak_comes_first_and_the_final_rate_last(kind):
    section = SECTIONS[kind].model_copy(update={"warmup": 0})
    rate = schedule(section, PEAK, STEPS)
    assert float(rate(0)) == pytest.approx(PEAK)
    assert float(rate(STEPS)) == float(rate(STEPS + 50)) == pytest.approx(0.25 * PEAK)


def test_a_long_warmup_leaves_the_fall_what_is_left():
    section = keys.WarmupStableDecay(warmup=90, final=0.25, decay=0.5)
    rate = schedule(section, PEAK, STEPS)
    assert float(rate(STEPS)) == pytest.approx(0.25 * PEAK)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_warmup_longer_than_the_run_is_said_with_the_rate_it_reaches(kind):
    section = SECTIONS[kind].model_copy(update={"warmup": 80})
    assert unfinished(section, 80) is None
    line = unfinished(section, 20)
    assert line and "warmup=80" in line and "25% of its peak; use 2 or so" in line
    assert float(schedule(section, PEAK, 20)(19)) == pytest.approx(0.25 * PEAK)
