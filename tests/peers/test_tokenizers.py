"""The same ids as transformers' AutoTokenizer for every form of a folder, as it came and saved."""

import pytest
from text import folders

from jaxlm.text import tokenizer as tokenizers

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
