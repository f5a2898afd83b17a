"""Texts, pairs and words within a length: what is cut, what stays, and where words begin."""

import pytest
import tokenizers as backends
from text.test_tokenizer_forms import FORMS

from jaxlm.core.errors import DataError
from jaxlm.text import tokenizer as tokenizers
from jaxlm.text.fitting import fit, fit_words

FIRST, SECOND = "The quick brown fox jumps", "over the lazy dog, 2024 times (or 1,000,000)."


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder whose texts are [CLS] a [SEP] and pairs [CLS] a [SEP] b [SEP]."""
    folder = tmp_path_factory.mktemp("bert")
    FORMS["bert"](folder)
    return folder


def limits(length, overlong="truncate-right"):
    return {"length": length, "overlong": overlong, "where": "here"}


@pytest.mark.parametrize("texts", [(FIRST, SECOND), (SECOND, FIRST), (FIRST, FIRST), (SECOND,)])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_longer_text_is_cut_first_as_tokenizers_does(bert, tmp_path, texts, side):
    tokenizer = tokenizers.load(bert)
    tokenizer.save(tmp_path)
    theirs = backends.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    whole = len(theirs.encode(*texts).ids)
    for length in range(4, whole + 2):
        theirs.enable_truncation(length, strategy="longest_first", direction=side)
        found = fit(
            tokenizer, *texts, *[None] * (2 - len(texts)), **limits(length, f"truncate-{side}")
        )
        want = theirs.encode(*texts)
        assert (found.ids, found.types) == (want.ids, want.type_ids)
        assert found.over == max(0, whole - length)


WORDS = ["Größe", "jumps", "(over)", "2024", "naïve,", "x"]


@pytest.mark.parametrize("form", FORMS)
def test_a_word_begins_at_the_first_id_that_holds_its_letters(form, tmp_path):
    FORMS[form](tmp_path)
    tokenizer = tokenizers.load(tmp_path)
    found = fit_words(tokenizer, WORDS, **limits(99))
    assert found.ids == tokenizer.encode(" ".join(WORDS)) and found.over == 0
    ends = [*found.firsts[1:], len(found.ids) - len(tokenizer.frame.after)]
    assert found.firsts == sorted(set(found.firsts)) and found.firsts[0] >= 0
    if tokenizer.unk is None or tokenizer.unk not in found.ids:
        said = [tokenizer.decode(found.ids[a:b]) for a, b in zip(found.firsts, ends, strict=True)]
        clean = [word.lower().replace(" ", "") for word in said]
        assert clean[1:4] == WORDS[1:4]


@pytest.mark.parametrize("overlong", ["truncate-right", "truncate-left"])
def test_words_that_are_cut_off_have_no_place(bert, overlong):
    tokenizer = tokenizers.load(bert)
    whole = fit_words(tokenizer, WORDS, **limits(99))
    length = len(whole.ids) - 5
    cut = fit_words(tokenizer, WORDS, **limits(length, overlong))
    assert len(cut.ids) == length and cut.over == 5
    assert (cut.ids[0], cut.ids[-1]) == (whole.ids[0], whole.ids[-1])
    assert -1 in cut.firsts and max(cut.firsts) > 0
    for before, now in zip(whole.firsts, cut.firsts, strict=True):
        if now >= 0:
            assert cut.ids[now] == whole.ids[before]


def test_a_word_without_a_token_has_no_place(bert):
    tokenizer = tokenizers.load(bert)
    found = fit_words(tokenizer, ["fox", "\u0007", "dog"], **limits(99))
    assert found.firsts[1] == -1 < found.firsts[0] < found.firsts[2]


@pytest.mark.parametrize(("words", "line"), [(["a", " "], "word 2 is empty"), ([], "no word")])
def test_empty_words_and_texts_are_refused(bert, words, line):
    tokenizer = tokenizers.load(bert)
    with pytest.raises(DataError, match=f"here: .*{line}"):
        fit_words(tokenizer, words, **limits(9))
    with pytest.raises(DataError, match="here: the text is empty"):
        fit(tokenizer, "a", "  ", **limits(9))
