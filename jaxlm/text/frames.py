"""What a tokenizer puts around one text and around a pair of texts."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokenizers import Encoding, processors

from jaxlm.core.errors import DataError

OWN_FRAME = "sentencepiece_frame"
"""The key of tokenizer_config.json that names one of OWN for a SentencePiece model trained here."""


class Frame(NamedTuple):
    """The ids before and after a text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def around(self, ids: list[int]) -> list[int]:
        """The ids of a text with what goes around it."""
        return [*self.before, *ids, *self.after]


class PairFrame(NamedTuple):
    """The ids before, between and after two texts.

    types: the token types of what is before, of the first text, of what is between, of the second
    text and of what is after.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[tuple[int, ...], int, tuple[int, ...], int, tuple[int, ...]]

    def around(self, first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
        """The ids of two texts with what goes around them, and the token type of each id."""
        start, a, middle, b, end = self.types
        ids = [*self.before, *first, *self.between, *second, *self.after]
        types = [*start, *[a] * len(first), *middle, *[b] * len(second), *end]
        return ids, types


def single(encoding: Encoding) -> Frame:
    """What goes around a text, read from how one with ids was encoded."""
    inside = [place for place, text in enumerate(encoding.sequence_ids) if text == 0]
    ids = encoding.ids
    return Frame(tuple(ids[: inside[0]]), tuple(ids[inside[-1] + 1 :])) if inside else Frame()


def pair(encoding: Encoding, where: str) -> PairFrame:
    """What goes around two texts, read from how two with ids were encoded.

    Raises DataError naming `where` when they do not stand there once each, in their order.
    """
    texts, ids, types = encoding.sequence_ids, encoding.ids, encoding.type_ids
    first = [place for place, text in enumerate(texts) if text == 0]
    second = [place for place, text in enumerate(texts) if text == 1]
    if first and second and first[-1] < second[0]:
        cuts = slice(0, first[0]), slice(first[-1] + 1, second[0]), slice(second[-1] + 1, None)
        before, between, after = (tuple(types[cut]) for cut in cuts)
        kinds = before, types[first[0]], between, types[second[0]], after
        frame = PairFrame(*(tuple(ids[cut]) for cut in cuts), types=kinds)
        bare = ([ids[place] for place in inside] for inside in (first, second))
        if frame.around(*bare) == (ids, types):
            return frame
    raise DataError(
        where, "its post-processor does not put two texts one after the other; correct its pair"
    )


def each(frame: Frame) -> PairFrame:
    """Every text in a frame of its own, of types 0 and 1: by add_bos_token and add_eos_token."""
    before, after = frame
    start, end = (0,) * len(before), (0,) * len(after)
    types = start, 0, (*end, *(1,) * len(before)), 1, (1,) * len(after)
    return PairFrame(before, after + before, after, types)


def bert(frame: Frame) -> PairFrame:
    """[CLS] A [SEP] B [SEP], of types 0 and 1 (Devlin et al. 2019, figure 2)."""
    before, after = frame
    end = (0,) * len(after)
    types = (0,) * len(before), 0, end, 1, (1,) * len(after)
    return PairFrame(before, after, after, types)


def roberta(frame: Frame) -> PairFrame:
    """<s> A </s></s> B </s>, of one type, as fairseq writes pairs (Liu et al. 2019)."""
    before, after = frame
    end = (0,) * len(after)
    return PairFrame(before, after + after, after, ((0,) * len(before), 0, end + end, 0, end))


def t5(frame: Frame) -> PairFrame:
    """A </s> B </s>, of one type (Raffel et al. 2020)."""
    before, after = frame
    end = (0,) * len(after)
    return PairFrame(before, after, after, ((0,) * len(before), 0, end, 0, end))


OWN: dict[str, Callable[[Frame], PairFrame]] = {"roberta": roberta, "t5": t5}
"""bos_token and eos_token, where a tokenizer has them, around a text."""


def own(config: Mapping[str, Any], where: str) -> Callable[[Frame], PairFrame] | None:
    """The one of OWN that a configuration names, or None. Raises DataError for another name."""
    name = config.get(OWN_FRAME)
    if name is not None and name not in OWN:
        raise DataError(where, f"{OWN_FRAME} {name!r}: one of {', '.join(OWN)} is meant")
    return None if name is None else OWN[name]


def processor(
    first: str | None,
    last: str | None,
    ids: Mapping[str, int],
    form: Callable[[Frame], PairFrame],
) -> Any:
    """The post-processor that puts `first` before and `last` after a text, and a pair in `form`."""
    frame = Frame(*((ids[name],) if name else () for name in (first, last)))
    names = {ids[name]: name for name in (first, last) if name}
    before, between, after, (start, a, middle, b, end) = form(frame)

    def typed(tokens: tuple[int, ...], types: tuple[int, ...]) -> list[str]:
        return [f"{names[token]}:{kind}" for token, kind in zip(tokens, types, strict=True)]

    single = [f"{first}:0"] * bool(first) + ["$A:0"] + [f"{last}:0"] * bool(last)
    pair = [
        *typed(before, start),
        f"$A:{a}",
        *typed(between, middle),
        f"$B:{b}",
        *typed(after, end),
    ]
    tokens = [(name, index) for index, name in names.items()]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)
