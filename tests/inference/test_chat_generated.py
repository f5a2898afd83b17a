"""A chat is continued by the model's own template, up to any of the tokens that end it."""

import json
import shutil

import networks
import processes
import pytest

import jaxlm
from jaxlm.core import errors
from jaxlm.core.errors import DataError
from jaxlm.hub.save import save
from jaxlm.text.train import train

SOURCE = (
    "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SAID = [{"role": "user", "content": "def main("}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder whose tokenizer has a chat template."""
    tokenizer = train("bpe", 300, ["def main():\n    return 1\n"] * 9)
    tokenizer.templates = {"default": ("a test", SOURCE)}
    spec = networks.spec().model_copy(update={"vocab": tokenizer.vocab, "max_length": 128})
    out = tmp_path_factory.mktemp("chat") / "out"
    save(out, networks.params(spec), spec, tokenizer, max_shard_bytes=10**9)
    return out


@pytest.fixture
def model(folder):
    return jaxlm.load(folder)


def test_a_chat_is_the_text_that_its_template_writes(model):
    end = model.tokenizer.decode([model.tokenizer.eos], skip_special=False)
    written = model.tokenizer.encode(f"user: def main({end}assistant: ", parse_special=True)
    assert model._starts([SAID])[0] == written
    assert model.generate([SAID], max_tokens=8) == ["".join(model.stream(SAID, max_tokens=8))]


def test_a_chat_without_a_template_says_so(model):
    model.tokenizer.templates = {}
    with pytest.raises(DataError, match="^chat template: .* put a chat_template.jinja beside it"):
        model.generate([SAID], max_tokens=1)


def test_generation_stops_at_any_of_the_ends(model):
    prompts = ["def ", "return 1"]
    whole = [list(ids) for ids in zip(*tokens(model, prompts, 12), strict=True)]
    ends = (model.tokenizer.eos, whole[0][3], whole[1][7])
    model.tokenizer.ends = ends
    first = [min(at for at, token in enumerate(ids) if token in ends) for ids in whole]
    assert len([*tokens(model, prompts, 12)]) == max(first) + 1
    said = [model.tokenizer.decode(ids[:at]) for ids, at in zip(whole, first, strict=True)]
    assert model.generate(prompts, max_tokens=12) == said
    assert "".join(model.stream(prompts[0], max_tokens=12)) == said[0]


def tokens(model, prompts, count):
    """The next tokens of every prompt, greedily."""
    for row in model._continue(model._starts(prompts), count, {}):
        yield row.tolist()


def test_several_ends_are_written_and_read_again(model, tmp_path):
    model.tokenizer.ends = (model.tokenizer.eos, 7, 9)
    save(tmp_path / "out", model.params, model.spec, model.tokenizer, max_shard_bytes=10**9)
    for name in ("config.json", "generation_config.json"):
        ends = json.loads((tmp_path / "out" / name).read_text())["eos_token_id"]
        assert ends == [model.tokenizer.eos, 7, 9]
    assert jaxlm.load(tmp_path / "out").tokenizer.ends == model.tokenizer.ends


def test_the_command_prints_the_answer_alone(folder, model):
    words = ("generate", str(folder), "--prompt", "def main(", "--max-tokens", "8")
    code, out, err = processes.run(*words, "--chat")
    assert code == errors.DONE, err
    assert out == model.generate([SAID], max_tokens=8)[0] + "\n"


def test_a_run_keeps_the_template_and_the_ends_of_what_it_began_with(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [3, 7]}')
    own = [word for word in processes.words(tmp_path) if not word.startswith(("model.", "token"))]
    code, _, err = processes.run(*own, f"init={tmp_path}/base", "lora.rank=2", "steps=1")
    assert code == errors.DONE, err
    run = jaxlm.load(tmp_path / "run").tokenizer
    assert run.ends == (run.eos, 3, 7)
    assert run.templates["default"][1] == SOURCE


def test_a_model_without_a_template_is_one_line(folder):
    (folder / "chat_template.jinja").rename(folder / "elsewhere")
    code, out, err = processes.run("generate", str(folder), "--prompt", "Hello", "--chat")
    assert (code, out) == (errors.DATA, "")
    assert err.startswith("jaxlm: error: chat template: the tokenizer has none")
