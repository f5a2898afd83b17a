"""Labels of texts, pairs and words, with their probabilities, in batches of like lengths."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxlm.core.errors import ConfigError, DataError
from jaxlm.inference.batch import by_length, filled
from jaxlm.text.fitting import Fitted, check_fits, check_overlong, fit, fit_words

if TYPE_CHECKING:
    from jaxlm.inference.model import Model

Prediction = dict[str, Any]


class Task(NamedTuple):
    """What a classifier tells."""

    problem: str
    """single, multi, regression or tokens."""
    labels: tuple[str, ...]

    @property
    def type(self) -> str:
        """The objective that trains it."""
        return "token_classification" if self.problem == "tokens" else "classification"


class Asked(NamedTuple):
    """What is to be labeled."""

    where: str
    """What errors name."""
    text: str = ""
    pair: str | None = None
    words: tuple[str, ...] = ()


def predict(model: "Model", asked: Sequence[Asked], overlong: str = "error") -> list[Prediction]:
    """Of each text prediction, the label, and probabilities, of each label.

    Of several labels: those over 0.5. Of a regression: the number, or a list of them, alone. Of
    words: lists, one for each word; None for a word that no token begins or that was cut off.
    overlong: error, truncate-right or truncate-left. Raises ConfigError for another and for a model
    without labels, DataError for texts that are empty or longer than its positions.
    """
    check_overlong(overlong)
    task = task_of(model)
    fitted = [_fitted(model, each, task, overlong) for each in asked]
    found: list[Prediction] = [{} for _ in asked]
    typed = model.spec.embedding.types > 1
    for index, tokens, real in by_length([one.ids for one in fitted], model.spec.max_length):
        types = filled([fitted[i].types for i in index], tokens.shape) if typed else None
        scores = jax.device_get(model.logits(tokens, mask=real, types=types))
        for i, own in zip(index.tolist(), np.asarray(scores, np.float64), strict=False):
            found[i] = told(task, own, fitted[i])
    return found


def task_of(model: "Model") -> Task:
    """What a model tells: where nobody said, one label, or a number where it scores one alone, as
    transformers has it. Raises ConfigError for a model without labels.
    """
    head = model.spec.head
    if not head.labels:
        what = "has no labels to predict; train it with objective.type=classification"
        raise ConfigError("model", what)
    if head.pool == "none":
        return Task("tokens", model.labels)
    plain = "regression" if head.labels == 1 else "single"
    return Task(model.problem or plain, model.labels)


def asked(task: Task, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[Asked]:
    """Texts from Python, which `predict` takes. Raises DataError for what is none."""
    if isinstance(texts, str) or (pairs is not None and len(pairs) != len(texts)):
        what = "are a list of texts, pairs another as long; write ['a text'] for a single one"
        raise DataError("texts", what)
    if task.problem == "tokens":
        if pairs is not None:
            raise DataError("pairs", "are of a classifier of texts, not of words; leave them out")
        words = [each.split() if isinstance(each, str) else each for each in texts]
        for i, each in enumerate(words, 1):
            if not isinstance(each, list | tuple) or not all(isinstance(w, str) for w in each):
                raise DataError(f"text {i}", "is neither a text nor a list of words")
        return [Asked(f"text {i}", words=tuple(each)) for i, each in enumerate(words, 1)]
    seconds = [""] * len(texts) if pairs is None else pairs
    for i, both in enumerate(zip(texts, seconds, strict=True), 1):
        if odd := [each for each in both if not isinstance(each, str)]:
            raise DataError(f"text {i}", f"is {type(odd[0]).__name__}, not a text")
    seconds = [None] * len(texts) if pairs is None else pairs
    both = zip(texts, seconds, strict=True)
    return [Asked(f"text {i}", text, pair) for i, (text, pair) in enumerate(both, 1)]


def told(task: Task, scores: np.ndarray, fitted: Fitted) -> Prediction:
    """What the scores [C], or [L, C] of words, of a text say."""
    if task.problem == "regression":
        numbers = [float(each) for each in scores]
        return {"prediction": numbers[0] if len(numbers) == 1 else numbers}
    if task.problem == "multi":
        shares = 1 / (1 + np.exp(-scores))
        names = [n for n, share in zip(task.labels, shares, strict=True) if share > 0.5]
        return {"prediction": names, "probabilities": _named(task, shares)}
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    if task.problem == "single":
        return {
            "prediction": task.labels[int(shares.argmax())],
            "probabilities": _named(task, shares),
        }
    words = [None if at < 0 else shares[at] for at in fitted.firsts]
    return {
        "prediction": [None if p is None else task.labels[int(p.argmax())] for p in words],
        "probabilities": [None if p is None else _named(task, p) for p in words],
    }


def _named(task: Task, shares: np.ndarray) -> dict[str, float]:
    return {name: round(float(p), 6) for name, p in zip(task.labels, shares, strict=True)}


def _fitted(model: "Model", one: Asked, task: Task, overlong: str) -> Fitted:
    limits: Any = {"length": model.spec.max_length, "overlong": overlong, "where": one.where}
    if task.problem == "tokens":
        found = fit_words(model.tokenizer, one.words, **limits)
    else:
        found = fit(model.tokenizer, one.text, one.pair, **limits)
    check_fits(found.over, model.spec.max_length, overlong, one.where)
    return found
