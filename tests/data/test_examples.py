"""What is learned of an example, how examples share rows, and what the audit says of them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from jaxlm.config.schema import Source
from jaxlm.core.errors import DataError
from jaxlm.data.cache import held_out
from jaxlm.data.examples import open_examples, read_examples, said, texts
from jaxlm.data.pipeline import answers, open_data

CHAT = [
    {"role": "user", "content": "the fox"},
    {"role": "assistant", "content": "quick"},
    {"role": "user", "content": "brown"},
    {"role": "assistant", "content": "dog jumps"},
]


@pytest.fixture
def opened(tmp_path, tokenizer):
    """(records, options) -> rows, rows held out, the audit."""

    def open_(records, length=64, hold_out=0.0, **how):
        path = tmp_path / "examples.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        options = {"template": "plain", "learn": "responses", "overlong": "error", "packing": True}
        how = SimpleNamespace(**(options | how))
        source = Source(path=str(path))
        return open_examples(source, tokenizer, how, length=length, hold_out=hold_out, say=None)

    return open_


def batch_of(rows, row=0):
    """One row, as a batch."""
    return rows.take(np.array([row]), np.array([0]))


def learned(rows, tokenizer, row=0):
    """The text of the targets that have a weight."""
    batch = batch_of(rows, row)
    return tokenizer.decode(batch["targets"][0][batch["weights"][0] > 0], skip_special=False)


@pytest.mark.parametrize(
    ("learn", "text"),
    [
        ("responses", "quick<|endoftext|>dog jumps<|endoftext|>"),
        ("last", "dog jumps<|endoftext|>"),
        ("all", "the fox\nquick<|endoftext|>\nbrown\ndog jumps<|endoftext|>"),
    ],
)
def test_what_is_learned_of_a_chat(opened, tokenizer, learn, text):
    rows, _, audit = opened([{"messages": CHAT}], learn=learn)
    found = learned(rows, tokenizer)
    assert found == (text if learn != "all" else found) and text.endswith(found[-20:])
    assert audit.kept == audit.ends_trained == 1 and audit.format == "messages"
    if learn == "all":  # everything but the first token
        assert rows.take(np.array([0]), np.array([0]))["weights"].sum() == rows.tokens - 1


def test_a_message_may_be_left_out(opened, tokenizer):
    chat = [CHAT[0], {**CHAT[1], "train": False}, *CHAT[2:]]
    assert learned(opened([{"messages": chat}])[0], tokenizer) == "dog jumps<|endoftext|>"
    weights = [CHAT[0], CHAT[1], CHAT[2], {**CHAT[3], "weight": 0}]
    assert learned(opened([{"messages": weights}])[0], tokenizer) == "quick<|endoftext|>"


def test_a_completion_is_learned_with_its_end_and_as_it_is_answered(opened, tokenizer):
    rows, _, _ = opened([{"prompt": "the fox ", "completion": "jumps"}])
    assert learned(rows, tokenizer) == "jumps<|endoftext|>"
    asked = tokenizer.encode("the fox ", add_special=False)
    assert rows.take(np.array([0]), np.array([0]))["tokens"][0, : len(asked)].tolist() == asked


def test_examples_share_rows_and_are_as_they_are_alone(opened):
    records = [{"prompt": "fox " * n, "completion": "dog"} for n in (3, 9, 5, 14)]
    packed, _, audit = opened(records, length=32)
    alone, _, _ = opened(records, length=32, packing=False)
    assert packed.count == audit.rows < alone.count == 4
    found = []
    for row in range(packed.count):
        batch = {name: x[0] for name, x in packed.take(np.array([row]), np.array([0])).items()}
        for segment in range(1, batch["segments"].max() + 1):
            at = batch["segments"] == segment
            assert batch["positions"][at].tolist() == list(range(at.sum()))
            found.append([batch[name][at].tolist() for name in ("tokens", "targets", "weights")])
    right = []
    for row in range(4):
        batch = {name: x[0] for name, x in alone.take(np.array([row]), np.array([0])).items()}
        at = batch["segments"] == 1
        right.append([batch[name][at].tolist() for name in ("tokens", "targets", "weights")])
    assert sorted(found) == sorted(right)


def test_an_example_that_is_too_long_is_refused_or_cut_or_dropped_and_told(opened):
    records = [{"prompt": "fox " * 40, "completion": "dog"}, {"prompt": "a", "completion": "b"}]
    with pytest.raises(DataError, match=r"examples\.jsonl:1: \d+ tokens are more than length=16"):
        opened(records, length=16)
    rows, _, audit = opened(records, length=16, overlong="truncate-left")
    assert audit.kept == 2 and audit.truncated == 1 and batch_of(rows)["weights"].any()
    for how, why in (("truncate-right", "no learned token"), ("drop", "too long")):
        rows, _, audit = opened(records, length=16, overlong=how)
        assert audit.kept == 1 and dict(audit.dropped) == {why: 1}
        assert audit.lost[-1]["where"].endswith("examples.jsonl:1")
        assert any(why in line for line in audit.lines(False))


def test_nothing_to_learn_is_refused(opened):
    records = [{"messages": [CHAT[0], {**CHAT[1], "train": False}]}]
    with pytest.raises(DataError, match="nothing is left to learn from: 1 no learned token"):
        opened(records)


@pytest.fixture
def templated(tokenizer, monkeypatch):
    """Give the tokenizer a chat template of its own."""
    return lambda text: monkeypatch.setattr(tokenizer, "templates", {"default": ("t", text)})


@pytest.mark.parametrize("text", ["hello", "{% generation %}{% endgeneration %}" * 2])
def test_a_template_that_writes_no_answer_is_refused(opened, templated, text):
    templated(text)
    with pytest.raises(DataError, match=r"jsonl:1: the model's own .* writes nothing of the answ"):
        opened([{"messages": CHAT}], template=None)


def test_what_a_template_writes_for_a_token_and_is_none_is_told(opened, templated):
    templated("{% for m in messages %}<|turn|>{{ m.content }}{{ '<|no|>' if m.tool }}{% endfor %}")
    audit = opened([{"messages": CHAT}], template=None)[2]
    assert audit.summary()["unknown"] == {"<|turn|>": 1}
    assert any("<|turn|> of the template is no token of" in line for line in audit.lines(False))


def test_a_call_without_a_text_needs_a_template_that_writes_it(opened):
    called = {"role": "assistant", "content": None, "tool_calls": [{}]}
    with pytest.raises(DataError, match=r"jsonl:1: message 2 has no content, which plain cannot"):
        opened([{"messages": [CHAT[0], called]}])


def test_what_is_held_out_is_so_by_what_it_says(opened):
    records = [{"prompt": f"number {n}", "completion": "dog"} for n in range(200)]
    train, held, audit = opened(records, hold_out=0.2)
    assert 20 < audit.held < 60 and len(held.examples) == audit.held
    assert len(train.examples) == audit.kept == 200 - audit.held
    again = opened(records[::-1], hold_out=0.2)[1]
    ids = [sorted(example.ids.tolist() for example in each.examples) for each in (held, again)]
    assert ids[0] == ids[1]


def test_a_tokenizer_without_a_template_needs_a_choice(opened):
    with pytest.raises(DataError, match=r"examples\.jsonl:1: .*no chat template; add"):
        opened([{"messages": CHAT}], template=None)
    with pytest.raises(
        DataError, match=r"chatml writes <\|im_end\|>, which the tokenizer does not"
    ):
        opened([{"messages": CHAT}], template="chatml")


def test_rows_of_their_own_are_as_wide_as_the_longest_of_the_batch(tmp_path, tokenizer):
    path = tmp_path / "e.jsonl"
    records = [{"prompt": "fox " * n, "completion": "dog"} for n in (2, 30, 3, 60)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    how = SimpleNamespace(template=None, learn="responses", overlong="error", packing=False)
    opener = answers(tokenizer, how, length=128)
    source = (Source(path=str(path)),)
    data, _ = open_data(source, None, opener, length=128, pad=tokenizer.pad, seed=0)
    widths = set()
    for step in range(8):
        batch = data.batch(step, 2)
        width = batch["tokens"].shape[1]
        longest = int((batch["segments"] > 0).sum(1).max())
        assert longest <= width < longest + 16 and width % 16 == 0
        part = data.batch(step, 2, slice(1, 2))
        assert all(np.array_equal(part[name], batch[name][1:]) for name in batch)
        widths.add(width)
    assert len(widths) > 1


def test_a_tokenizer_is_trained_on_all_that_is_said_but_what_is_held_out(tmp_path):
    records = [{"instruction": "add", "input": f"{n} more", "output": "it"} for n in range(40)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = Source(path=str(path))
    assert [*texts([source])][:3] == ["add", "0 more", "it"]
    whole, part = ({t for t in texts([source], share) if "more" in t} for share in (0.0, 0.3))
    held = {
        each.messages[0]["input"] for each in read_examples(source) if held_out(said(each), 0.3)
    }
    assert len(whole) == 40 and held and part == whole - held
