"""What stays is what was asked for, and always the newest."""

from hypothesis import given
from hypothesis import strategies as st

from jaxlm.checkpoint import inspect
from jaxlm.checkpoint.retention import kept

SCORES = st.dictionaries(st.integers(0, 200), st.none() | st.floats(0, 9), min_size=1)


@given(SCORES, st.integers(1, 5), st.integers(0, 30), st.booleans())
def test_keeps_last_every_and_best_and_no_others(scores, last, every, best):
    keep = kept(scores, last=last, every=every, best=best)
    newest = sorted(scores)[-last:]
    scored = {step: score for step, score in scores.items() if score is not None}
    lowest = {step for step, score in scored.items() if score == min(scored.values())}
    assert set(newest) <= keep <= set(scores)
    assert not best or not lowest or keep & lowest
    extra = keep - set(newest) - {step for step in scores if every and step % every == 0}
    assert not extra or (best and len(extra) == 1 and extra <= lowest)


def test_older_ones_go_after_a_commit(kit):
    checkpoints = kit.open(keep=2, keep_every=4, keep_best=True)
    state = kit.make(0, {"fsdp": 8})
    for step, score in enumerate([3.0, 9.0, 1.0, 5.0, float("nan"), 4.0, 4.0]):
        checkpoints.save(step, *state, {}, score=score)
    checkpoints.wait()
    assert inspect.steps(kit.folder) == [0, 2, 4, 5, 6]
