"""What became of the examples of a source."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from jaxlm.core.errors import DataError


@dataclass
class Audit:
    """Counts of the examples of one source, and where those are from that were not taken whole."""

    source: str
    examples: int = 0
    kept: int = 0
    """Those that are trained on."""
    held: int = 0
    """Those held out for validation."""
    rows: int = 0
    truncated: int = 0
    """Texts."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Why -> how many examples."""
    lost: list[dict[str, str]] = field(default_factory=list)
    """Where each example is from that was dropped or truncated, and why."""

    def lines(self, pad_is_eos: bool) -> list[str]:
        """As a person reads it before the first step."""
        return [
            f"{self.source}: {self.examples:,} {self.what}",
            f"  {self.kept:,} kept in {self.rows:,} rows, {self.held:,} held out, "
            f"{self.truncated:,} truncated, {self.dropped.total():,} dropped"
            + "".join(f"; {why}: {count:,}" for why, count in self.dropped.items()),
        ]

    @property
    def what(self) -> str:
        """What they are examples of."""
        return "examples"

    def cut(
        self, where: str, long: int, most: int, overlong: str, *, key: str = "length", of: str = ""
    ) -> bool:
        """Note a text of `long` tokens where `most` are read: whether it is cut, or its example
        dropped.

        overlong: error, truncate-right, truncate-left or drop. key: what says the most. of: which
        of an example's texts. Raises DataError for error.
        """
        if overlong == "error":
            what = f"{of}{long} tokens are more than {key}={most}; use {key}={long}, or"
            raise DataError(
                where, f"{what} examples.overlong=truncate-right, truncate-left or drop"
            )
        self.lost.append({"where": where, "tokens": str(long), "why": overlong})
        if overlong == "drop":
            self.dropped["too long"] += 1
        else:
            self.truncated += 1
        return overlong != "drop"

    def drop(self, where: str, why: str) -> None:
        """Note an example that is left out."""
        self.dropped[why] += 1
        self.lost.append({"where": where, "why": why})

    def check(self) -> None:
        """Raise DataError when nothing is left to train on."""
        if self.rows:
            return
        counts = [f"{count} {why}" for why, count in self.dropped.items()]
        counts += [f"{self.held} held out"] if self.held else []
        why = ", ".join(counts) or "0 examples"
        raise DataError(self.source, f"nothing is left to learn from: {why}")

    def summary(self) -> dict[str, Any]:
        """The counts, for a file."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        del found["lost"]
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in found.items()}
