"""The balance of experts against transformers' own function, and in a model's whole loss."""

import hubs
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.models.transformer import make_forward
from jaxlm.objectives.lm import language_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_the_loss_with_its_balance_is_that_of_transformers(tmp_path, family):
    model = jaxlm.load(hubs.write(tmp_path / "m", family))
    spec = model.spec.model_copy(update={"balance_loss": 1.0})
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, spec.vocab, (2, 12)).astype(np.int32)
    real = np.arange(12)[None] < np.array([[12], [7]])
    batch = {
        "tokens": tokens,
        "positions": np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape),
        "segments": real.astype(np.int32),
        "targets": np.roll(tokens, -1, 1),
        "weights": (real & np.roll(real, -1, 1) & (np.arange(12) < 11)[None]).astype(np.float32),
    }
    forward = make_forward(spec, model._layout, jnp.float32)
    sums = language_model(z_loss=0.0, shards=1).loss(forward, model.params, batch, None)

    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    labels = np.where(real, tokens, -100)
    with torch.no_grad():
        given = {"input_ids": tokens, "attention_mask": real.astype(np.int64), "labels": labels}
        given = {name: torch.tensor(np.asarray(x, np.int64)) for name, x in given.items()}
        theirs = net(**given, output_router_logits=True)
    found = float(sums.auxiliary["balance_loss"] / sums.weight)
    np.testing.assert_allclose(found, float(theirs.aux_loss), rtol=1e-5)
    whole = float(theirs.loss) - net.router_aux_loss_coef * float(theirs.aux_loss)
    np.testing.assert_allclose(float(sums.loss / sums.weight), whole, rtol=1e-5)
