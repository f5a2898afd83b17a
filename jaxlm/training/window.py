"""The rows of metrics.jsonl: sums of the steps since the last row, divided once.

What a step returns stays on the device until the next step is dispatched, so that reading it does
not hold the device up. Everything that outlives a restart is in `state`, a dict that JSON can hold.
"""

from typing import Any

import jax

from jaxlm.core.errors import NumericError
from jaxlm.training.step import Metrics


class Window:
    """Totals since the last row, and since the first step: tokens and skipped updates."""

    def __init__(self, state: dict[str, Any] | None, max_skipped: int):
        self.state: dict[str, Any] = {"tokens": 0, "skipped": 0, "in_a_row": 0, "sums": {}}
        self._tokens = 0  # since the last row or the start: what this process's clock has seen
        self.state |= {**(state or {}), "in_a_row": 0}  # a new start has new tries
        self._max_skipped = max_skipped
        self._pending: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """The metrics of update number `step`, still being computed; reads those before it."""
        self.drain()
        self._pending.append((step, metrics))

    def drain(self) -> None:
        """Read what is pending. Raises NumericError after too many skipped updates in a row."""
        for step, metrics in self._pending:
            self._read(step, {k: v.item() for k, v in jax.device_get(metrics).items()})
        self._pending = []

    def row(self, step: int, seconds: dict[str, float]) -> dict[str, Any]:
        """The row of `step`, and a new window. seconds: how long, in all and by part."""
        self.drain()
        sums = self.state["sums"]
        weight, updates = sums.pop("weight", 0.0), sums.pop("updates", 0)
        norm, tokens, self._tokens = sums.pop("grad_norm", 0.0), self._tokens, 0
        means = {name: total / weight if weight else None for name, total in sums.items()}
        self.state["sums"] = {}
        return {
            "step": step,
            "loss": means.pop("loss", None),
            **means,
            "grad_norm": norm / updates if updates else None,
            "tokens": self.state["tokens"],
            "tokens_per_second": tokens / max(seconds["seconds"], 1e-9),
            "skipped": self.state["skipped"],
            **seconds,
        }

    def _read(self, step: int, found: dict[str, Any]) -> None:
        state, sums = self.state, self.state["sums"]
        state["tokens"] += found["tokens"]
        self._tokens += found["tokens"]
        if found["skipped"]:
            state["skipped"] += 1
            state["in_a_row"] += 1
            if state["in_a_row"] >= self._max_skipped:
                raise NumericError(
                    f"step {step}",
                    f"the gradient is NaN or infinite for {state['in_a_row']} steps in a row; "
                    "lower optimizer.learning_rate and add --allow-change optimizer.learning_rate",
                )
            return
        state["in_a_row"] = 0
        found["updates"] = 1
        for name, value in found.items():
            if name not in ("skipped", "tokens"):
                sums[name] = sums.get(name, 0) + value
