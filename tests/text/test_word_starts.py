"""Where ids stand in a text, and which of them begin words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text import folders
from text.test_tokenizer_forms import FORMS

from jaxlm.core.errors import DataError
from jaxlm.text import tokenizer as tokenizers

TEXT = "The quick (brown) fox, it's 2024.\ndef greet(name):\n\treturn x\n"
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")


@pytest.fixture(params=FORMS)
def folder(request, tmp_path):
    return request.param, tokenizers.load(FORMS[request.param](tmp_path))


def check(text, ids, spans):
    """What holds of spans in every text."""
    assert spans.shape == (len(ids), 2) and spans.dtype == np.int32
    assert (spans >= 0).all() and (spans <= len(text)).all()
    assert (np.diff(spans[:, 0]) >= 0).all() and (spans[:, 0] <= spans[:, 1]).all()
    for start, end in spans:
        inside = text[start:end]
        assert inside == inside.strip() or not inside.strip()


def test_spans_are_of_the_ids_and_have_every_word(folder):
    _, tokenizer = folder
    for text in folders.TEXTS:
        ids, spans = tokenizer.encode_offsets(text)
        assert ids == tokenizer.encode(text, add_special=False)
        check(text, ids, spans)
        inside = {place for start, end in spans for place in range(start, end)}
        letters = {at for at, letter in enumerate(text) if letter.isascii() and letter.isalnum()}
        assert letters <= inside


def test_a_span_has_the_text_of_its_id(folder):
    _, tokenizer = folder
    ids, spans = tokenizer.encode_offsets(TEXT)
    for index, (start, end) in zip(ids, spans, strict=True):
        said = tokenizer.decode([index]).strip().removeprefix("##")
        assert said in ("", TEXT[start:end].lower(), TEXT[start:end])


def test_parts_of_a_character_share_it(folder):
    _, tokenizer = folder
    text = "a 🙂🙂 b"
    ids, spans = tokenizer.encode_offsets(text)
    said = [text[start:end] for start, end in spans]
    assert set(said) - {" "} <= {"a", "🙂", "🙂🙂", "b"}  # WordPiece knows neither: one for both
    if len(ids) > 8:
        assert said.count("🙂") >= 8


def test_a_special_token_has_its_name(folder):
    _, tokenizer = folder
    name = min(tokenizer.names)
    text = f"the {name} fox{name}"
    ids, spans = tokenizer.encode_offsets(text, parse_special=True)
    assert ids == tokenizer.encode(text, parse_special=True, add_special=False)
    check(text, ids, spans)
    found = [
        text[slice(*span)]
        for index, span in zip(ids, spans, strict=True)
        if index == tokenizer.names[name]
    ]
    assert found == [name, name]


@settings(deadline=None)
@given(st.text(CHARACTERS))
def test_spans_of_what_is_trained_here_leave_out_nothing(tokenizer, text):
    ids, spans = tokenizer.encode_offsets(text)
    assert ids == tokenizer.encode(text)
    check(text, ids, spans)
    inside = {place for start, end in spans for place in range(start, end)}
    assert {at for at, letter in enumerate(text) if not letter.isspace()} <= inside


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(DataError, match="character 1 is a lone surrogate"):
        tokenizer.encode_offsets("a\ud800")


def words(tokenizer, text):
    """The text between the starts of words."""
    ids, spans = tokenizer.encode_offsets(text)
    starts = tokenizer.word_starts()[ids]
    starts[1:] |= tokenizer.word_ends()[ids[:-1]]
    starts[0] = True
    groups = np.split(spans, np.flatnonzero(starts)[1:])
    return [text[group[:, 0].min() : group[:, 1].max()].strip() for group in groups]


WORDS = {
    "gpt2": "The quick ( brown ) fox , it 's 2024 . def greet ( name ): return x",
    "bert": "The quick ( brown ) fox , it ' s 2024 . def greet ( name ) : return x",
    "t5": "The quick (brown) fox, it's 2024. def greet(name): return x",
    "llama": "The quick (brown) fox, it's 2024. def greet(name): return x",
}


@pytest.mark.parametrize("form", WORDS)
def test_words_are_those_of_the_family(form, tmp_path):
    tokenizer = tokenizers.load(FORMS[form](tmp_path))
    assert [word for word in words(tokenizer, TEXT) if word] == WORDS[form].split()


def test_words_of_what_is_trained_here(tokenizer):
    found = [word for word in words(tokenizer, "fox jumps\nreturn 12\tdog") if word]
    assert found == ["fox", "jumps", "return", "12", "dog"]


def test_a_wordpiece_begins_a_word_unless_it_continues_one(tmp_path):
    tokenizer = tokenizers.load(folders.vocab_txt(tmp_path))
    pieces = (tmp_path / "vocab.txt").read_text().splitlines()
    starts = tokenizer.word_starts()
    assert starts.tolist() == [not piece.startswith("##") for piece in pieces]


def test_special_tokens_are_words(folder):
    _, tokenizer = folder
    ids = list(tokenizer.names.values())
    assert tokenizer.word_starts()[ids].all() and tokenizer.word_ends()[ids].all()
    assert tokenizer.word_starts().shape == tokenizer.word_ends().shape == (tokenizer.vocab,)


def test_sentences_end_with_their_last_letter(folder):
    _, tokenizer = folder
    ends = tokenizer.sentence_ends()
    assert ends.shape == (tokenizer.vocab,) and not ends[[*tokenizer.names.values()]].any()
    pieces = [tokenizer.decode([index]) for index in range(tokenizer.vocab)]
    for index in np.flatnonzero(ends):
        assert pieces[index].endswith((".", "!", "?", "\n"))
    ids = tokenizer.encode("the fox. the dog", add_special=False)
    assert ends[ids].sum() == 1
