"""What may change when a run is continued."""

import pytest

from jaxlm.config.load import load
from jaxlm.core.errors import ConfigError
from jaxlm.training import resume


@pytest.fixture
def accept(tmp_path):
    """(overrides, whether a step is committed, keys allowed) -> what was said."""

    def run(*words, begun=True, allow=()):
        if begun:
            (tmp_path / "checkpoints" / "5").mkdir(parents=True, exist_ok=True)
            (tmp_path / "checkpoints" / "5" / "MANIFEST.json").touch()
        said = []
        config = load(None, ["steps=10", "data.train=text", *words])
        resume.accept(config, tmp_path, allow, said.append)
        return said

    return run


def test_steps_log_checkpoint_and_evaluate_may_change(accept):
    accept(begun=False)
    assert accept("log.every=3", "checkpoint.keep=9", "evaluate.every=1") == []
    assert accept("steps=11", "checkpoint.keep=9")


def test_any_other_change_is_refused_by_name_and_may_be_allowed_by_name(accept):
    accept(begun=False)
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1.*--allow-change seed"):
        accept("seed=1")
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1; optimizer\.b1: 0\.9 -> 0\.8"):
        accept("seed=1", "optimizer.b1=0.8")
    assert accept("seed=1", allow=("seed",)) == []
    assert accept("seed=1") == []  # it is this run's seed now


def test_what_a_checkpoint_holds_of_an_adapter_may_not_change(accept, tmp_path):
    accept("lora.rank=2", "lora.alpha=4", begun=False)
    with pytest.raises(ConfigError, match=r"its checkpoints hold lora\.alpha=4\.0, not 8\.0"):
        accept("lora.rank=2", "lora.alpha=8", allow=("lora",))
    (tmp_path / "checkpoints" / "5" / "MANIFEST.json").unlink()
    accept("lora.rank=2", "lora.alpha=4", "init=base", begun=False)  # it holds what trains alone
    assert accept("lora.rank=2", "lora.alpha=8", "init=base", allow=("lora",)) == []


def test_more_steps_say_which_rate_follows_when_the_schedule_falls(accept):
    accept(begun=False)
    (line,) = accept("steps=20")
    assert "cosine" in line and "rate at step 10 was" in line
    accept("steps=20", "optimizer.schedule.type=constant", allow=("optimizer",))
    assert accept("steps=30", "optimizer.schedule.type=constant") == []


def test_a_run_without_a_checkpoint_starts_over_with_any_setting(accept, tmp_path):
    accept(begun=False)
    (tmp_path / "tokenizer").mkdir()
    assert accept("seed=1", "tokenizer.vocab=300", begun=False) == []
    assert not (tmp_path / "tokenizer").exists()
