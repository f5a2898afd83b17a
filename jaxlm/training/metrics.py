"""How near answers are to what is expected: one number for all of them."""

from collections.abc import Callable, Sequence

from jaxlm.core.errors import ConfigError

Score = Callable[[Sequence[tuple[str, str]]], float]
"""(an answer, what is expected) of every prompt that expects something -> a number."""


def metric(name: str) -> Score:
    """The one of this name. Raises ConfigError where its package is missing."""
    return METRICS[name]()


def _exact() -> Score:
    """The share that is the expected text, but for space around it."""

    def score(pairs: Sequence[tuple[str, str]]) -> float:
        return sum(said.strip() == wanted.strip() for said, wanted in pairs) / len(pairs)

    return score


def _rouge_l() -> Score:
    """The mean F1 of the longest common subsequence of words, in [0, 1] (Lin 2004, section 3).

    By rouge-score, without stemming: words are runs of a-z and 0-9 once it is in small letters.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer  # pyright: ignore
    except ImportError:
        raise _missing("rouge_l", "rouge-score") from None
    scorer = RougeScorer(["rougeL"])

    def score(pairs: Sequence[tuple[str, str]]) -> float:
        found = (scorer.score(wanted, said)["rougeL"].fmeasure for said, wanted in pairs)
        return float(sum(found)) / len(pairs)

    return score


def _chrf() -> Score:
    """The F2 of character n-grams up to 6 over all answers, in [0, 100] (Popovic 2015; 2016).

    By sacrebleu, as chrF2 without n-grams of words.
    """
    try:
        from sacrebleu.metrics.chrf import CHRF  # pyright: ignore
    except ImportError:
        raise _missing("chrf", "sacrebleu") from None
    chrf = CHRF()

    def score(pairs: Sequence[tuple[str, str]]) -> float:
        said, wanted = zip(*pairs, strict=True)
        return float(chrf.corpus_score(list(said), [list(wanted)]).score)

    return score


METRICS: dict[str, Callable[[], Score]] = {"exact": _exact, "rouge_l": _rouge_l, "chrf": _chrf}


def _missing(name: str, package: str) -> ConfigError:
    what = f"{name} needs the package {package}; pip install 'jaxlm[metrics]'"
    return ConfigError("samples.metrics", what)
