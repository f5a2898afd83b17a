"""What goes around one text and around a pair, for every form of a folder."""

import json

import pytest
import tokenizers as backends
from text import folders
from text.test_tokenizer_forms import FORMS
from tokenizers import decoders, processors

from jaxlm.core.errors import DataError
from jaxlm.text import tokenizer as tokenizers

PAIRS = {
    "gpt2": ("", "", "", [0, 1]),
    "roberta": ("<s>", "</s></s>", "</s>", [0, 0, 0, 0, 0, 0]),
    "bert": ("[CLS]", "[SEP]", "[SEP]", [0, 0, 0, 1, 1]),
    "llama": ("<s>", "<s>", "", [0, 0, 1, 1]),
    "gemma": ("<bos>", "<bos>", "", [0, 0, 1, 1]),
    "t5": ("", "</s>", "</s>", [0, 0, 0, 0]),
    "json": ("", "", "", [0, 1]),
    "modernbert": ("[CLS]", "[SEP]", "[SEP]", [0, 0, 0, 1, 1]),
}
"""Before, between and after, and the types with one id per text. The json form has no such pair."""


@pytest.fixture(params=FORMS)
def folder(request, tmp_path):
    FORMS[request.param](tmp_path)
    return request.param, tmp_path


def named(tokenizer, ids):
    names = {index: name for name, index in tokenizer.names.items()}
    return "".join(names[index] for index in ids)


def test_a_text_is_framed_as_it_is_encoded(folder):
    tokenizer = tokenizers.load(folder[1])
    bare = tokenizer.encode("The quick fox", add_special=False)
    assert tokenizer.framed(bare) == tokenizer.encode("The quick fox")
    assert tokenizer.joined(bare) == (tokenizer.framed(bare), [0] * len(tokenizer.framed(bare)))
    assert tokenizer.framed([]) == [*tokenizer.frame.before, *tokenizer.frame.after]


def test_a_pair_is_framed_as_the_family_writes_it(folder):
    form, path = folder
    tokenizer = tokenizers.load(path)
    frame = tokenizer.pair_frame
    *around, types = PAIRS[form]
    assert [named(tokenizer, ids) for ids in frame[:3]] == around
    assert tokenizer.joined([7], [8])[1] == types
    ids, types = tokenizer.joined([7, 9, 9], [8, 8])
    assert ids == [*frame.before, 7, 9, 9, *frame.between, 8, 8, *frame.after]
    assert len(types) == len(ids)
    assert tokenizer.joined([], [])[0] == [*frame.before, *frame.between, *frame.after]


def test_saved_the_frames_stay(folder):
    tokenizer = tokenizers.load(folder[1])
    tokenizer.save(folder[1] / "again")
    again = tokenizers.load(folder[1] / "again")
    assert (again.frame, again.pair_frame) == (tokenizer.frame, tokenizer.pair_frame)


def with_processor(folder, processor):
    folders.tokenizer_json(folder, "bytes")
    backend = backends.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor, backend.decoder = processor, decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    return tokenizers.load(folder)


def test_several_post_processors_are_one_frame(tmp_path):
    template = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 0)]
    )
    both = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    tokenizer = with_processor(tmp_path, both)
    assert tokenizer.frame == ((0,), ())
    assert tokenizer.joined([7], [8]) == ([0, 7, 0, 8], [0, 0, 1, 1])


def test_a_pair_in_another_order_is_refused_where_pairs_are_made(tmp_path):
    template = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $B <s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = with_processor(tmp_path, template)
    assert tokenizer.framed([7]) == [0, 7]
    with pytest.raises(DataError, match="does not put two texts one after the other") as raised:
        tokenizer.joined([7], [8])
    assert str(raised.value).startswith(str(tmp_path)) and "\n" not in str(raised.value)


ROLES = {
    "gpt2": (None, None),
    "roberta": ("<mask>", "<s>"),
    "bert": ("[MASK]", "[CLS]"),
    "llama": (None, None),
    "gemma": ("<mask>", None),
    "t5": (None, None),
    "json": (None, None),
    "modernbert": ("[MASK]", "[CLS]"),
}


def test_what_is_masked_and_what_stands_for_a_text_are_found(folder):
    form, path = folder
    tokenizer = tokenizers.load(path)
    mask, cls = (tokenizer.names.get(name) for name in ROLES[form])
    assert (tokenizer.mask, tokenizer.role("cls")) == (mask, cls)
    assert bool(mask) == bool(ROLES[form][0])
    assert tokenizer.mask not in (tokenizer.eos, tokenizer.pad)


def test_sentinels_go_down_from_the_last_id(tmp_path):
    tokenizer = tokenizers.load(folders.t5(tmp_path, extra_ids=12))
    assert tokenizer.sentinels == tuple(tokenizer.vocab - 1 - number for number in range(12))
    assert tokenizer.encode("<extra_id_11>", parse_special=True)[-2] == tokenizer.sentinels[11]


def test_where_there_are_no_sentinels_there_are_none(tmp_path):
    assert tokenizers.load(folders.t5(tmp_path, extra_ids=0)).sentinels == ()
    assert tokenizers.load(folders.modernbert(tmp_path)).sentinels == ()


OLD = [
    {"config.json": {"model_type": "bert"}, "tokenizer_config.json": {"model_max_length": 512}},
    {"config.json": {}, "tokenizer_config.json": {"tokenizer_class": "BertTokenizerFast"}},
]


@pytest.mark.parametrize("says", OLD)
def test_an_older_folder_has_the_tokens_of_its_class(says, tmp_path):
    tokenizers.load(folders.vocab_txt(tmp_path)).save(tmp_path / "json")
    (tmp_path / "json" / "special_tokens_map.json").unlink()
    for name, values in says.items():
        folders.write_json(tmp_path / "json", name, values)
    tokenizer = tokenizers.load(tmp_path / "json")
    found = (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.mask, tokenizer.unk)
    assert found == tuple(
        tokenizer.names[name] for name in ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]")
    )


def test_a_frame_of_another_name_is_refused(tmp_path):
    folders.llama(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"sentencepiece_model": "tokenizer.model", "sentencepiece_frame": "xlnet"}
    folders.write_json(tmp_path, "tokenizer_config.json", config)
    with pytest.raises(DataError, match="sentencepiece_frame 'xlnet': one of roberta, t5 is meant"):
        tokenizers.load(tmp_path)
