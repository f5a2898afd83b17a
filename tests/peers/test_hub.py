"""Folders of transformers here and ours there: the same logits, the same greedy continuation."""

import json

import networks
import numpy as np
import pytest

import jaxlm
from jaxlm.hub.load import open_folder
from jaxlm.hub.save import save
from jaxlm.text.train import train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT = "def main(argument):\n    return [word for word in argument if word]\n" * 20
NETWORKS = {
    "llama": lambda **more: transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, intermediate_size=48, tie_word_embeddings=False, **more
    ),
    "gemma2": lambda **more: transformers.Gemma2Config(
        **SIZES, num_key_value_heads=2, head_dim=8, intermediate_size=48, sliding_window=5, **more
    ),
    "mixtral": lambda **more: transformers.MixtralConfig(
        **SIZES, num_key_value_heads=2, intermediate_size=24, num_local_experts=4, **more
    ),
    "gpt_neox": lambda **more: transformers.GPTNeoXConfig(**SIZES, intermediate_size=48, **more),
}


@pytest.fixture(scope="module", params=NETWORKS)
def theirs(request, tmp_path_factory):
    """(their network, the folder that they saved with our tokenizer beside it)."""
    tokenizer = train("bpe", 300, [TEXT])
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    config = NETWORKS[request.param](vocab_size=tokenizer.vocab, max_position_embeddings=64, **ids)
    torch.manual_seed(0)
    net = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.1 * torch.randn_like(value))
    folder = tmp_path_factory.mktemp("theirs")
    net.save_pretrained(folder)
    tokenizer.save(folder)
    return net, folder


def tokens():
    return np.random.default_rng(0).integers(1, 300, (2, 24))


def close(found, right):
    assert np.abs(np.asarray(found) - right).max() < 2e-5 * np.abs(right).max()


def test_their_folder_has_their_logits_here(theirs):
    net, folder = theirs
    right = net(torch.tensor(tokens())).logits.detach().numpy()
    close(jaxlm.load(folder).logits(tokens()), right)
    close(jaxlm.load(folder, mesh={"fsdp": 4, "tensor": 2}).logits(tokens()), right)


def test_greedy_continuations_are_theirs_token_for_token(theirs):
    net, folder = theirs
    model = jaxlm.load(folder)
    prompt = "def main(word"
    ids = torch.tensor([model.tokenizer.encode(prompt)])
    right = net.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
    found = model.generate([prompt], max_tokens=24)
    assert found == [model.tokenizer.decode(right)]


def test_our_export_has_our_logits_there(theirs, tmp_path):
    _, folder = theirs
    model, out = jaxlm.load(folder), tmp_path / "out"
    config = open_folder(folder).config
    save(out, model.params, model.spec, model.tokenizer, max_shard_bytes=30_000, config=config)
    again = transformers.AutoModelForCausalLM.from_pretrained(out).float().eval()
    close(model.logits(tokens()), again(torch.tensor(tokens())).logits.detach().numpy())
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer(TEXT)["input_ids"] == model.tokenizer.encode(TEXT)
    assert tokenizer.eos_token_id == model.tokenizer.eos


def test_a_model_made_here_loads_there(tmp_path):
    tokenizer = train("bpe", 300, [TEXT])
    spec = networks.spec(vocab=tokenizer.vocab).model_copy(update={"max_length": 64})
    save(tmp_path / "out", networks.params(spec), spec, tokenizer, max_shard_bytes=10**9)
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").float().eval()
    right = net(torch.tensor(tokens())).logits.detach().numpy()
    close(jaxlm.load(tmp_path / "out").logits(tokens()), right)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
