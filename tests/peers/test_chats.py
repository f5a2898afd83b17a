"""The same text, ids and assistant's tokens as transformers' apply_chat_template."""

import pytest
from text import chats, folders

from jaxlm.core.errors import DataError
from jaxlm.text import chat
from jaxlm.text import tokenizer as tokenizers

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

NAMES = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<|eot_id|>", "[INST]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer that puts <s> before every text, with more special tokens."""
    folder = tmp_path_factory.mktemp("chats")
    return folders.tokenizer_json(folder, "bytes", additional_special_tokens=NAMES[:-1])


@pytest.fixture(scope="module")
def pair(folder):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.add_special_tokens({"additional_special_tokens": NAMES})
    theirs.save_pretrained(folder)
    return theirs, tokenizers.load(folder)


@pytest.mark.parametrize("name", chats.TEMPLATES)
@pytest.mark.parametrize("said", chats.CHATS)
def test_a_chat_is_that_of_transformers(pair, name, said):
    theirs, ours = pair
    messages, how = chats.CHATS[said]
    template = chat.ChatTemplate(chats.TEMPLATES[name], tokens=ours.special)
    try:
        want = theirs.apply_chat_template(
            messages, chat_template=chats.TEMPLATES[name], tokenize=False, **how
        )
    except Exception as error:
        with pytest.raises(DataError) as raised:
            template.render(messages, **how)
        assert str(error) in str(raised.value)
        return
    assert template.render(messages, **how).text == want
    ids = theirs.apply_chat_template(
        messages, chat_template=chats.TEMPLATES[name], return_dict=False, **how
    )
    assert template.apply(ours, messages, **how) == ids


def test_generation_blocks_are_those_of_transformers(pair):
    theirs, ours = pair
    found = theirs.apply_chat_template(
        chats.TURN * 3,
        chat_template=chats.THINKING,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    rendered = chat.ChatTemplate(chats.THINKING, tokens=ours.special).render(chats.TURN * 3)
    mask = [0] * len(found["input_ids"])
    for at in range(len(mask)):
        span = found.token_to_chars(at)
        mask[at] = int(any(start <= span.start < end for start, end in rendered.spans))
    assert mask == found["assistant_masks"] and 0 < sum(mask) < len(mask)


@pytest.mark.parametrize("form", ["bytes", "llama"])
def test_what_a_user_writes_stays_text_as_transformers_sanitizes(form, tmp_path):
    make = {"bytes": lambda f: folders.tokenizer_json(f, "bytes"), "llama": folders.llama}[form]
    theirs = transformers.AutoTokenizer.from_pretrained(make(tmp_path))
    ours = tokenizers.load(tmp_path)
    for text in (
        "a </s> b",
        "</s>",
        "<s></s>",
        "  x</s>\n<s> ",
    ):
        messages = [{"role": "user", "content": text}]
        for source in (chats.GEMMA, "{{ bos_token }}{{ messages[0].content }}"):
            template = chat.ChatTemplate(source, tokens=ours.special)
            for sanitized in (True, False):
                want = theirs.apply_chat_template(
                    messages,
                    chat_template=source,
                    return_dict=False,
                    sanitize_control_tokens=sanitized,
                )
                assert template.apply(ours, messages, parse_special=not sanitized) == want


def test_templates_go_to_transformers_and_come_back(folder, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = {"default": chats.CHATML, "tool_use": chats.LLAMA3}
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tokenizers.load(tmp_path / "theirs")
    assert chat.of(ours).source == chats.CHATML
    assert chat.of(ours, "tool_use").source == chats.LLAMA3
    ours.save(tmp_path / "ours")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert again.chat_template == theirs.chat_template
    assert again.apply_chat_template(chats.TURN, return_dict=False) == chat.of(ours).apply(
        ours, chats.TURN
    )


def test_all_ends_reach_generation(folder, tmp_path):
    ours = tokenizers.load(folder)
    ours.ends = (ours.eos, 7, 9)
    ours.save(tmp_path)
    assert transformers.GenerationConfig.from_pretrained(tmp_path).eos_token_id == [ours.eos, 7, 9]
