"""The same ids as transformers' AutoTokenizer for every form of a folder, as it came and saved."""

import pytest
from text import conftest, folders

from jaxlm.text import tokenizer as tokenizers
from jaxlm.text import train, words

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers


def described(folder, model_type):
    folders.write_json(folder, "config.json", {"model_type": model_type})
    return folder


END = "<|endoftext|>"
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NEOX = [END, "<|padding|>"]
GPT2 = {"tokenizer_class": "GPT2Tokenizer", "eos_token": END, "bos_token": END, "unk_token": END}
FORMS = {
    "gpt2": (lambda f: folders.vocab_and_merges(f, [END], **GPT2), [END]),
    "roberta": (
        lambda f: folders.vocab_and_merges(f, ROBERTA, tokenizer_class="RobertaTokenizer"),
        ROBERTA,
    ),
    "qwen2": (
        lambda f: folders.vocab_and_merges(f, [END], tokenizer_class="Qwen2Tokenizer"),
        [END],
    ),
    "bert uncased": (lambda f: folders.vocab_txt(f), ["[CLS]", "[SEP]", "[MASK]", "[UNK]"]),
    "bert cased": (
        lambda f: folders.vocab_txt(f, do_lower_case=False, tokenize_chinese_chars=False),
        ["[MASK]"],
    ),
    "bert accents": (lambda f: folders.vocab_txt(f, strip_accents=False), ["[MASK]"]),
    "llama": (lambda f: folders.llama(f, legacy=False), ["<s>", "</s>", "<unk>"]),
    "llama legacy": (lambda f: folders.llama(f, legacy=True), ["<s>", "</s>", "<unk>"]),
    "t5": (lambda f: folders.t5(f, extra_ids=100), ["<pad>", "</s>", "<extra_id_0>"]),
    "mistral": (lambda f: described(folders.llama(f, legacy=True), "mistral"), ["<s>", "</s>"]),
    "mistral new": (
        lambda f: described(folders.llama(f, ["[INST]", "  x"], legacy=False), "mistral"),
        ["<s>", "[INST]", "  x"],
    ),
    "phi3": (lambda f: described(folders.llama(f, add_bos_token=False), "phi3"), ["</s>"]),
    "json bytes": (lambda f: folders.tokenizer_json(f, "bytes"), ["<s>", "</s>"]),
    "json unigram": (lambda f: folders.tokenizer_json(f, "unigram"), ["<s>", "</s>"]),
    "json wordpiece": (lambda f: folders.tokenizer_json(f, "wordpiece"), ["<s>", "</s>"]),
    "gpt neox": (
        lambda f: folders.vocab_and_merges(f, NEOX, tokenizer_class="GPTNeoXTokenizer"),
        NEOX,
    ),
    "bart": (
        lambda f: folders.vocab_and_merges(f, ROBERTA, tokenizer_class="BartTokenizer"),
        ROBERTA,
    ),
    "modernbert": (folders.modernbert, ["[CLS]", "[MASK]", "[SEP]"]),
    "gemma": (folders.gemma, ["<bos>", "<eos>", "<start_of_turn>", "<mask>"]),
    "t5 few": (lambda f: folders.t5(f, extra_ids=7), ["<extra_id_6>"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_are_those_of_transformers(form, tmp_path):
    make, specials = FORMS[form]
    theirs = transformers.AutoTokenizer.from_pretrained(make(tmp_path))
    ours = tokenizers.load(tmp_path)
    ours.save(tmp_path / "saved")
    theirs.save_pretrained(tmp_path / "theirs")
    theirs_saved = tokenizers.load(tmp_path / "theirs")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in [*folders.TEXTS, *folders.with_specials(specials)]:
        ids = theirs.encode(text)
        assert ours.encode(text, parse_special=True) == ids, text
        assert again.encode(text) == ids, text
        assert theirs_saved.encode(text, parse_special=True) == ids, text
        bare = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text, parse_special=True, add_special=False) == bare
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.vocab == theirs_saved.vocab == len(theirs) == len(again)
    assert ours.eos in (theirs.eos_token_id, theirs.sep_token_id)


def same_pairs(ours, theirs):
    for first, second in (("fox a", "dog"), (folders.TEXT, "HELLO Straße"), ("x", "  two")):
        found = theirs(first, second, return_token_type_ids=True)
        bare = [ours.encode(text, add_special=False) for text in (first, second)]
        assert ours.joined(*bare) == (found["input_ids"], found["token_type_ids"])
        alone = theirs(first, return_token_type_ids=True)
        assert ours.joined(bare[0]) == (alone["input_ids"], alone["token_type_ids"])


@pytest.mark.parametrize("form", FORMS)
def test_pairs_and_places_are_those_of_transformers(form, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(FORMS[form][0](tmp_path))
    ours = tokenizers.load(tmp_path)
    if form != "json bytes":  # that file has no pair of its own
        same_pairs(ours, theirs)
    assert ours.mask == theirs.mask_token_id
    assert ours.pad == (ours.eos if theirs.pad_token_id is None else theirs.pad_token_id)
    for text in folders.TEXTS:
        found = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
        _, spans = ours.encode_offsets(text, parse_special=True)
        expected = words.trimmed(text, found["offset_mapping"])
        lettered = [bool(text[start:end].strip()) for start, end in expected]
        assert spans[lettered].tolist() == expected[lettered].tolist()


OLD = {"bert uncased": "bert", "roberta": "roberta", "t5": "t5", "bart": "bart"}


@pytest.mark.parametrize("form", OLD)
def test_an_older_folder_that_names_no_token_is_read_as_transformers_does(form, tmp_path):
    transformers.AutoTokenizer.from_pretrained(FORMS[form][0](tmp_path)).save_pretrained(
        tmp_path / "old"
    )
    folders.write_json(tmp_path / "old", "tokenizer_config.json", {"model_max_length": 512})
    theirs = transformers.AutoTokenizer.from_pretrained(described(tmp_path / "old", OLD[form]))
    ours = tokenizers.load(tmp_path / "old")
    assert (ours.pad, ours.mask, ours.unk) == (
        theirs.pad_token_id,
        theirs.mask_token_id,
        theirs.unk_token_id,
    )
    assert ours.eos in (theirs.eos_token_id, theirs.sep_token_id)
    same_pairs(ours, theirs)


@pytest.mark.parametrize("structure", ["encoder", "encoder-decoder"])
@pytest.mark.parametrize("type", train.TRAINERS)
def test_what_is_trained_here_is_the_same_in_transformers(type, structure, tmp_path):
    ours = train.train(type, 500, conftest.DOCUMENTS, structure)
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.vocab == len(theirs)
    assert (ours.bos, ours.eos, ours.pad, ours.mask) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
        theirs.mask_token_id,
    )
    assert theirs.convert_tokens_to_ids(theirs.extra_special_tokens) == [*ours.sentinels]
    special = [*ours.names][:6]
    for text in [folders.TEXT, "", "a", "  two", *folders.with_specials(special)]:
        ids = theirs.encode(text)
        assert ours.encode(text, parse_special=True) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    same_pairs(ours, theirs)
