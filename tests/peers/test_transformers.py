"""The same network, batch and optimizer in transformers with torch: logits, losses, updates."""

from functools import partial

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from jaxlm.config.optimizers import AdamW, Constant
from jaxlm.core import tree
from jaxlm.models.axes import AXES
from jaxlm.models.spec import ModelSpec
from jaxlm.models.transformer import make_forward
from jaxlm.objectives.lm import language_model
from jaxlm.training import optim
from jaxlm.training.step import TrainState, train_step

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

SIZES = {"layers": 2, "embed": 32, "heads": 4, "mlp": 48}
LLAMA = ModelSpec.model_validate(
    SIZES
    | {"kv_heads": 2, "rope": {"theta": 500.0, "scaling": "llama3", "original_length": 8}}
    | {"tied": False, "norm": {"eps": 1e-3}}
).filled(vocab=networks.VOCAB, max_length=64)
GPT2 = ModelSpec.model_validate(SIZES | networks.GPT2).filled(vocab=networks.VOCAB, max_length=64)


def llama():
    """A random Llama of transformers, and our parameters with its weights."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = transformers.LlamaConfig(
        vocab_size=networks.VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-3,
        rope_parameters=rope | {"rope_theta": 500.0, "original_max_position_embeddings": 8},
        tie_word_embeddings=False,
    )
    net = shaken(transformers.LlamaForCausalLM(config))
    w = {name: value.detach().numpy() for name, value in net.state_dict().items()}

    def blocks(name, *shape):
        return np.stack([w[f"model.layers.{i}.{name}.weight"].T.reshape(shape) for i in (0, 1)])

    leaves = {
        "embed/embedding": padded(w["model.embed_tokens.weight"]),
        "head/kernel": padded(w["lm_head.weight"]).T,
        "decoder/final_norm/scale": w["model.norm.weight"],
        "decoder/blocks/attn_norm/scale": blocks("input_layernorm", 32),
        "decoder/blocks/mlp_norm/scale": blocks("post_attention_layernorm", 32),
        "decoder/blocks/attn/q/kernel": blocks("self_attn.q_proj", 32, 4, 8),
        "decoder/blocks/attn/k/kernel": blocks("self_attn.k_proj", 32, 2, 8),
        "decoder/blocks/attn/v/kernel": blocks("self_attn.v_proj", 32, 2, 8),
        "decoder/blocks/attn/o/kernel": blocks("self_attn.o_proj", 4, 8, 32),
        "decoder/blocks/mlp/gate/kernel": blocks("mlp.gate_proj", 32, 48),
        "decoder/blocks/mlp/up/kernel": blocks("mlp.up_proj", 32, 48),
        "decoder/blocks/mlp/down/kernel": blocks("mlp.down_proj", 48, 32),
    }
    return net, LLAMA, leaves


def gpt2():
    """A random GPT-2 of transformers, and our parameters with its weights."""
    config = transformers.GPT2Config(
        vocab_size=networks.VOCAB,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=48,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    net = shaken(transformers.GPT2LMHeadModel(config))
    w = {name: value.detach().numpy() for name, value in net.state_dict().items()}

    def blocks(name, *shape, part=slice(None)):
        found = [w[f"transformer.h.{i}.{name}"][..., part] for i in (0, 1)]
        return np.stack([each.reshape(shape) for each in found])

    leaves = {
        "embed/embedding": padded(w["transformer.wte.weight"]),
        "decoder/positions/embedding": w["transformer.wpe.weight"],
        "decoder/final_norm/scale": w["transformer.ln_f.weight"],
        "decoder/final_norm/bias": w["transformer.ln_f.bias"],
    }
    for ours, theirs in (("attn_norm", "ln_1"), ("mlp_norm", "ln_2")):
        leaves[f"decoder/blocks/{ours}/scale"] = blocks(f"{theirs}.weight", 32)
        leaves[f"decoder/blocks/{ours}/bias"] = blocks(f"{theirs}.bias", 32)
    for index, name in enumerate("qkv"):
        part = slice(32 * index, 32 * (index + 1))
        base = f"decoder/blocks/attn/{name}"
        leaves[f"{base}/kernel"] = blocks("attn.c_attn.weight", 32, 4, 8, part=part)
        leaves[f"{base}/bias"] = blocks("attn.c_attn.bias", 4, 8, part=part)
    for ours, theirs, *shape in (
        ("attn/o", "attn.c_proj", 4, 8, 32),
        ("mlp/up", "mlp.c_fc", 32, 48),
        ("mlp/down", "mlp.c_proj", 48, 32),
    ):
        leaves[f"decoder/blocks/{ours}/kernel"] = blocks(f"{theirs}.weight", *shape)
        leaves[f"decoder/blocks/{ours}/bias"] = blocks(f"{theirs}.bias", shape[-1])
    return net, GPT2, leaves


def shaken(net):
    """Every weight away from its initial value, norms and biases too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return net.float().eval()


def padded(table):
    """Rows up to a multiple of 128, as ours are."""
    return np.pad(table, ((0, -len(table) % 128), (0, 0)))


@pytest.mark.parametrize("family", [llama, gpt2])
def test_logits_and_ten_updates_are_those_of_transformers(family):
    net, spec, leaves = family()
    layout = networks.layout()
    forward = make_forward(spec, layout, jnp.float32)
    params = tree.unflatten({name: jnp.array(leaf) for name, leaf in leaves.items()})
    ids = np.random.default_rng(0).integers(0, networks.VOCAB, (4, 33)).astype(np.int32)
    batch = {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "weights": np.ones((4, 32), np.float32),
        "segments": np.ones((4, 32), np.int32),
        "positions": np.broadcast_to(np.arange(32, dtype=np.int32), (4, 32)),
    }
    theirs = net(torch.tensor(ids[:, :-1]).long()).logits.detach().numpy()
    ours = forward.logits(params, forward.hidden(params, batch, None)[0])[..., : spec.vocab]
    assert np.abs(ours - theirs).max() < 2e-5 * np.abs(theirs).max()

    section = AdamW(learning_rate=1e-3, weight_decay=0.0, clip=1.0, schedule=Constant(), eps=1e-6)
    optimizer = optim.build(section, params, steps=10, axes=AXES)
    step = jax.jit(
        partial(
            train_step,
            forward=forward,
            objective=language_model(z_loss=0.0, shards=1),
            tx=optimizer.tx,
            trainable=tree.select(params, ["."]),
            microbatches=1,
        )
    )
    state = TrainState(jnp.int32(0), params, optim.init_state(optimizer.tx, params, layout, AXES))
    adam = torch.optim.AdamW(
        net.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0
    )
    for _ in range(10):
        state, metrics = step(state, batch, jax.random.key(0))
        logits = net(torch.tensor(ids[:, :-1]).long()).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(ids[:, 1:]).long().flatten()
        )
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        assert metrics["loss"] / metrics["weight"] == pytest.approx(loss.item(), rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
