"""A model whose parameters are sharded over eight devices answers as one on a single device."""

import networks
import numpy as np
import pytest

from jaxlm.core.mesh import Layout, make_mesh
from jaxlm.inference.model import Model
from jaxlm.models.transformer import init_params
from jaxlm.text.train import train


@pytest.mark.parametrize(
    ("sizes", "experts"),
    [({"fsdp": -1}, 0), ({"fsdp": 2, "tensor": 4}, 0), ({"fsdp": 2, "expert": 4}, 4)],
)
def test_any_number_of_prompts_goes_on_any_mesh(sizes, experts):
    tokenizer = train("bpe", 300, ["def main():\n    return 1\n"] * 9)
    spec = networks.spec(experts={"count": experts})
    spec = spec.model_copy(update={"vocab": tokenizer.vocab, "max_length": 128})
    prompts, found = ["def ", "return 1", "x"], []
    for layout in (networks.layout(), Layout(make_mesh(sizes))):
        params = init_params(spec, layout, networks.ROOT, "float32")
        model = Model(params, spec, tokenizer, layout, "float32")
        logits = model.logits([[1, 2, 3]])
        found.append((model.generate(prompts, max_tokens=4, temperature=0.5), logits))
    (texts, one), (same, eight) = found
    assert texts == same and len(texts) == 3
    np.testing.assert_allclose(one, eight, atol=1e-5)
