"""Answers at each evaluation: asked as in training, marked, kept and shown."""

import json
import shutil
from types import SimpleNamespace

import processes
import pytest

from jaxlm.config.schema import Source
from jaxlm.core import errors
from jaxlm.core.errors import DataError
from jaxlm.data import asked
from jaxlm.data.examples import open_examples
from jaxlm.observe import report
from jaxlm.observe.metrics import Metrics
from jaxlm.text.train import train
from jaxlm.training import samples

TOKENIZER = train("bpe", 300, ["what is one plus two? it is three. {json} ### Response:"] * 30)
HOW = SimpleNamespace(template="alpaca", learn="responses", overlong="error", packing=False)
ANSWERS = {"ann": '{"a": 1}', "bob": '{"b": 2}'}


def write(folder, name, records):
    (folder / name).write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder / name


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "what is one", "completion": " plus two"},
        {"instruction": "what is one", "input": "plus", "output": "two"},
        {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]},
        {
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "two"}],
        },
        {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]},
    ],
    ids=lambda record: next(iter(record)),
)
def test_a_question_is_what_comes_before_the_trained_answer(tmp_path, record):
    path = write(tmp_path, "one.jsonl", [record])
    rows, _, _ = open_examples(
        Source(path=str(path)), TOKENIZER, HOW, length=512, hold_out=0.0, say=None
    )
    ids, learned = rows.examples[0]
    (found,) = asked.read_file(str(path), TOKENIZER, HOW, 9)
    assert found.ids == ids[: int(learned.argmax())].tolist()
    assert found.expected.strip() in ("plus two", "two")
    bare = {name: value for name, value in record.items() if name not in ("completion", "output")}
    bare |= {name: record[name][:1] for name in ("messages", "conversations") if name in record}
    (again,) = asked.read_file(str(write(tmp_path, "two.jsonl", [bare])), TOKENIZER, HOW, 9)
    assert again.ids == found.ids and again.expected is None


def test_an_answer_may_hold_every_break_of_a_line(tmp_path):
    path, said = tmp_path / samples.FILE, "a\x85b\u2028c\x1cd\n"
    rows = [{"step": step, "prompt": "", "output": said, "expected": None} for step in (0, 5, 9)]
    for row in rows:
        samples._write(path, row["step"], [row])
    assert [json.loads(line) for line in path.read_text().split("\n") if line] == rows
    samples._write(path, 5, [rows[1]])
    Metrics(tmp_path, primary=True).cut(0)
    assert "a\x85b\u2028c" in report.write(tmp_path).read_text()


def test_each_line_of_a_text_is_a_prompt(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"one\r\n\r\ntwo\xe2\x80\xa8three\r\nfour\r\n")
    found = asked.read_file(str(tmp_path / "p.txt"), TOKENIZER, HOW, 9)
    assert [each.text for each in found] == ["one", "two\u2028three", "four"]
    (tmp_path / "p.txt").write_text("one\n\ntwo three\nfour\n")
    found = asked.read_file(str(tmp_path / "p.txt"), TOKENIZER, HOW, 2)
    assert [(each.text, each.where[-2:]) for each in found] == [("one", ":1"), ("two three", ":3")]
    (tmp_path / "p.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no prompt"):
        asked.read_file(str(tmp_path / "p.txt"), TOKENIZER, HOW, 2)


def test_the_last_question_of_a_chat_is_asked_and_what_it_is_about_is_shown(tmp_path):
    turns = ["human", "one"], ["gpt", "two"], ["human", "three"]
    chat = {"conversations": [{"from": who, "value": said} for who, said in turns]}
    path = write(tmp_path, "chat.jsonl", [chat])
    (found,) = asked.read_file(str(path), TOKENIZER, HOW, 9)
    assert (found.text, found.expected) == ("three", None)
    records = [{"instruction": "Add.", "input": sum, "output": "3"} for sum in ("1 + 2", "2 + 1")]
    found = asked.read_file(str(write(tmp_path, "sums.jsonl", records)), TOKENIZER, HOW, 9)
    assert [each.text for each in found] == ["Add.\n1 + 2", "Add.\n2 + 1"]


def test_the_held_out_examples_are_those_of_the_validation(tmp_path):
    ask = "what is {}?".format
    records = [{"prompt": ask(n) * (1 + 50 * (n % 3 > 1)), "completion": "it"} for n in range(200)]
    source, how = (
        Source(path=str(write(tmp_path, "all.jsonl", records))),
        SimpleNamespace(**vars(HOW)),
    )
    how.overlong = "drop"
    _, held, audit = open_examples(source, TOKENIZER, how, length=64, hold_out=0.2, say=None)
    assert audit.dropped["too long"] > 20
    found = asked.held([source], 0.2, TOKENIZER, how, 999, length=64)
    assert len(found) > 20
    assert [each.ids for each in found] == [
        ids[: int(learned.argmax())].tolist() for ids, learned in held.examples
    ]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run that learns two answers by heart, asked every fifth step."""
    folder = tmp_path_factory.mktemp("learned")
    asks = [{"prompt": f"{who}: ", "completion": what} for who, what in ANSWERS.items()]
    write(folder, "few.jsonl", asks)
    write(folder, "many.jsonl", asks * 16)
    (folder / "schema.json").write_text('{"type": "object", "required": ["a"]}')
    return folder


def tune(folder, *more, devices=1):
    text = "objective.type=sft steps=60 evaluate.every=20 checkpoint.every=20 samples.tokens=16 "
    text += (
        f"data.train={folder}/many.jsonl run_dir={folder}/run samples.prompts={folder}/few.jsonl "
    )
    text += f"samples.match=json samples.json_schema={folder}/schema.json length=64 "
    text += "model.dropout=0 optimizer.learning_rate=0.02 samples.metrics=exact samples.beams=2"
    words = [*processes.TINY, *text.split(), *more]
    return processes.run("train", *words, devices=devices)


def rows_of(folder):
    lines = (folder / "run" / "samples.jsonl").read_text().splitlines()
    scored = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [*map(json.loads, lines)], [r for r in map(json.loads, scored) if "samples_match" in r]


@pytest.mark.once
def test_a_run_learns_to_answer_and_says_so(learned):
    code, out, err = tune(learned, devices=2)
    assert code == errors.DONE, err
    said, scored = rows_of(learned)
    assert [row["step"] for row in scored] == [20, 40, 60]
    assert [row["step"] for row in said] == [20, 20, 40, 40, 60, 60]
    last = scored[-1]
    assert last["samples_match"] == last["samples_parsed"] == last["samples_exact"] == 1
    assert last["samples_schema"] == 0.5
    assert [row["output"] for row in said[-2:]] == [*ANSWERS.values()]
    assert "'ann: ' -> '{\"a\": 1}'" in out + err and "right 100.0%  parsed 100.0%" in out + err
    page = (learned / "run" / "report.html").read_text()
    assert "Answers" in page and "{&quot;b&quot;: 2}" in page
    shutil.rmtree(learned / "run" / "checkpoints" / "60")
    code, _, err = tune(learned, devices=2)  # from step 40 on, once more
    assert code == errors.DONE and rows_of(learned) == (said, scored), err


@pytest.mark.parametrize(
    ("more", "code", "line"),
    [
        (["samples.prompts=nowhere.jsonl"], 3, "nowhere.jsonl"),
        (["samples.prompts=validation"], 2, "objective.type=sft or seq2seq with data.validation"),
        (["samples.match=jsn"], 2, "'jsn' is no way to match; use exact, json,"),
        (["samples.match=regex:("], 2, "is not a regular expression"),
        (["samples.json_schema=nowhere.json"], 3, "nowhere.json: cannot be read"),
        (["samples.match=xml"], 2, "samples.json_schema: is of JSON; leave it out"),
        (["samples.tokens=62"], 3, "few.jsonl:1: 3 tokens of prompt and samples.tokens=62 exceed"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_compilation(learned, more, code, line):
    found, out, err = tune(learned, f"run_dir={learned}/refused", *more)
    assert found == code and line in err and err.count("\n") == 1, err
    assert "compiling" not in out + err
