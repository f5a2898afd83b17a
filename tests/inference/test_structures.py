"""Encoders, encoder-decoders and classifiers where a decoder is expected, and what they answer."""

import hubs
import numpy as np
import processes
import pytest

import jaxlm
from jaxlm.core.errors import ConfigError, DataError
from jaxlm.inference.export import export

IDS = [[5, 9, 11, 4]]


@pytest.mark.parametrize(
    ("name", "use", "auto"),
    [
        ("bert", "fill-mask", "AutoModelForMaskedLM"),
        ("roberta sequence", "text-classification", "AutoModelForSequenceClassification"),
        ("modernbert tokens", "token-classification", "AutoModelForTokenClassification"),
        ("t5", "text2text-generation", "AutoModelForSeq2SeqLM"),
    ],
)
def test_the_card_names_the_class_that_loads_the_head(tmp_path, name, use, auto):
    source = hubs.write(tmp_path / "in", name)
    export(str(source), str(tmp_path / "out"), dtype=None, max_shard_bytes=10**9)
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"pipeline_tag: {use}\n" in text and f"{auto}.from_pretrained" in text


@pytest.mark.parametrize("name", ["bert", "t5", "bart sequence"])
def test_what_the_objective_does_not_train_is_refused_in_one_line(tmp_path, name):
    source = hubs.write(tmp_path / "in", name)
    (tmp_path / "text.txt").write_text("some text\n" * 500)
    line = f"init={source} data.train={tmp_path}/text.txt run_dir={tmp_path}/run steps=1 batch=8"
    code, _, error = processes.run("train", *line.split(), "length=16", "platform=cpu")
    assert code == 2 and "Traceback" not in error
    assert "objective.type: clm does not train" in error.splitlines()[-1]


def test_an_encoder_continues_no_text(tmp_path):
    model = jaxlm.load(hubs.write(tmp_path / "in", "roberta"))
    with pytest.raises(ConfigError, match="an encoder, which continues no text"):
        model.generate(["ab"])
    model = jaxlm.load(hubs.write(tmp_path / "classes", "bart sequence"))
    with pytest.raises(ConfigError, match="a classifier"):
        model.generate(["ab"])


def test_an_answer_does_not_depend_on_the_prompts_beside_it(tmp_path):
    model = jaxlm.load(hubs.write(tmp_path / "in", "bart"))
    prompts = ["ab", "a much longer prompt than the other"]
    together = model.generate(prompts, max_tokens=8)
    assert together == [model.generate([prompt], max_tokens=8)[0] for prompt in prompts]


def test_a_source_is_asked_for_where_it_is_needed_and_nowhere_else(tmp_path):
    pair, encoder = (jaxlm.load(hubs.write(tmp_path / name, name)) for name in ("t5", "bert"))
    with pytest.raises(DataError, match="source: is missing"):
        pair.logits(IDS)
    with pytest.raises(DataError, match="leave it out"):
        encoder.logits(IDS, source=IDS)
    with pytest.raises(DataError, match=r"types: .* within \[0, 3\)"):
        encoder.logits(IDS, types=[[0, 1, 2, 3]])


def test_a_classifier_of_an_encoder_decoder_reads_the_text_twice(tmp_path):
    model = jaxlm.load(hubs.write(tmp_path / "in", "bart sequence"))
    start = model.spec.encoder.start
    found = model.logits(IDS)
    right = model.logits([[start, *IDS[0][:-1]]], source=IDS)
    assert found.shape == (1, 2) and np.array_equal(found, right)
    padded = model.logits([[*IDS[0], 0, 0]], [[1, 1, 1, 1, 0, 0]])
    np.testing.assert_allclose(padded, found, atol=1e-5)
    padded = model.logits([[0, 0, *IDS[0]]], [[0, 0, 1, 1, 1, 1]])
    np.testing.assert_allclose(padded, found, atol=1e-5)


def test_a_tokenizer_larger_than_the_model_is_a_bad_checkpoint_for_every_verb(tmp_path):
    source = hubs.write(tmp_path / "in", "llama", vocab_size=200)
    (tmp_path / "text.txt").write_text("some text\n" * 500)
    for words in (
        [
            "train",
            f"init={source}",
            f"data.train={tmp_path}/text.txt",
            f"run_dir={tmp_path}/run",
            "steps=1",
        ],
        ["generate", str(source), "--prompt", "ab"],
    ):
        code, _, error = processes.run(*words)
        assert code == 4, error
        assert "its tokenizer has 270 ids, its model 200" in error.splitlines()[-1]


def test_sources_are_as_many_as_targets_and_types_are_of_models_that_have_them(tmp_path):
    model = jaxlm.load(hubs.write(tmp_path / "in", "t5"))
    with pytest.raises(DataError, match="source: has 2 rows for 1 of tokens"):
        model.logits(IDS, source=IDS * 2)
    with pytest.raises(DataError, match="types: is nothing that this model has"):
        model.logits(IDS, source=IDS, types=[[0] * 4])
