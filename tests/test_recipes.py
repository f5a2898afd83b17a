"""Every recipe fits the card that it names, for each model, by the plan; and its step compiles."""

import pytest
import recipes

from jaxlm.config.load import presets

WAYS = recipes.ways()
CELLS = [(*way, model) for way in WAYS for model in recipes.MODELS]
SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
COMPILED = {("full", 48): "Llama 3 8B", ("lora", 24): "Mistral 7B", ("qlora", 48): "Gemma 7B"}
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def test_every_method_has_its_cards():
    assert {card for method, card in WAYS if method == "full"} == {*recipes.CARDS} - {24}
    for method in ("lora", "qlora"):
        assert {card for name, card in WAYS if name == method} == {*recipes.CARDS}
    assert "24 GB hold none" in presets()["full"].read_text()


@pytest.mark.parametrize(("method", "card", "model"), CELLS)
def test_a_recipe_fits_its_card(method, card, model):
    _, use = recipes.planned(method, WAYS[method, card], model)
    assert use.total < 1e9 * recipes.CARDS[card], f"{use.total / 1e9:.1f} GB"


@pytest.mark.parametrize(
    ("card", "words"), [(24, ("param_dtype=bfloat16", "batch=1")), (48, ("batch=1",))]
)
def test_all_parameters_do_not_fit_a_smaller_card(card, words):
    _, use = recipes.planned("full", ("optimizer.type=adafactor", *words), "Mistral 7B")
    assert use.total > 1e9 * card


@pytest.mark.parametrize(("way", "model"), COMPILED.items())
def test_a_recipe_compiles(way, model):
    """Narrow and of five layers; the rest, but for the length, is the recipe's own."""
    small = {**recipes.MODELS[model], **SMALL}
    low, held = recipes.lowered(way[0], [*WAYS[way], "length=64"], small)
    memory = low.compile(QUICK).memory_analysis()
    rows = 5 * 4 * 16 * 64
    assert held <= memory.argument_size_in_bytes <= held + rows + 1000


def test_the_table_in_the_docs_is_what_is_planned():
    text = recipes.PAGE.read_text()
    assert text == recipes.page(text), "run python tests/recipes.py"
