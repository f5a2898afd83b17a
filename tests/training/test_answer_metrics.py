"""How near answers are to what is expected: by definition where it is short, and at the ends."""

import sys

import pytest

from jaxlm.config.schema import Metric
from jaxlm.core.errors import ConfigError
from jaxlm.training import metrics

SAME = [("a cat sat", "a cat sat"), ("on the mat", "on the mat")]
APART = [("xyz", "the cat"), ("xyz", "a mat")]
MOST = {"exact": 1, "rouge_l": 1, "chrf": 100}


def test_every_metric_of_the_configuration_is_there():
    assert set(Metric.__args__) == set(metrics.METRICS) == set(MOST)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_the_expected_text_has_the_most_and_another_nothing(name):
    score = metrics.metric(name)
    assert score(SAME) == pytest.approx(MOST[name])
    assert score(APART) == 0
    assert 0 < score([*SAME, *APART]) < MOST[name]


def test_exact_looks_past_the_space_around():
    assert metrics.metric("exact")([(" a\n", "a"), ("b", "B")]) == 0.5


def test_rouge_l_is_the_mean_f1_of_longest_common_subsequences():
    """Of 3 words 2 stand in 4 in their order: P = 2/3, R = 2/4 (Lin 2004, section 3.1)."""
    one = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    pairs = [("sat the cat", "the old cat ran"), *SAME[:1]]
    assert metrics.metric("rouge_l")(pairs) == pytest.approx((one + 1) / 2)


def test_chrf_is_of_all_answers_together():
    """Of one letter each: precision 1 of 2 and recall 1 of 2, whatever the answer it is in."""
    assert metrics.metric("chrf")([("a", "a"), ("b", "c")]) == pytest.approx(50)
    assert metrics.metric("chrf")([("\u732b", "\u732b")]) == pytest.approx(100)


@pytest.mark.parametrize(
    ("name", "package", "module"),
    [("rouge_l", "rouge-score", "rouge_score.rouge_scorer"), ("chrf", "sacrebleu", "sacrebleu")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch, name, package, module):
    for each in [module, *(m for m in sys.modules if m.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, each, None)
    line = rf"samples.metrics: {name} needs the package {package}; pip install 'jaxlm\[metrics\]'"
    with pytest.raises(ConfigError, match=line):
        metrics.metric(name)
