"""jaxlm adapter: what is shown, how two differ, a merge that is measured before it is written."""

import json

import hubs
import jax
import networks
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxlm
from jaxlm import cli
from jaxlm.core import errors, tree
from jaxlm.core.errors import CheckpointError
from jaxlm.inference import adapter_tables, merging
from jaxlm.models import lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base in float32, adapters of it, and the base in bfloat16."""
    at = tmp_path_factory.mktemp("verbs")
    base = jaxlm.load(hubs.write(at / "base", "llama"))
    hubs.write_adapter(base, at / "one", 1)
    hubs.write_adapter(base, at / "two", 2, rank=1, targets=["attn/[qv]/kernel"])
    hubs.write_adapter(base, at / "dora", 1, dora=True)
    hubs.write(
        at / "half", "llama", change=lambda p: jax.tree.map(lambda x: x.astype("bfloat16"), p)
    )
    hubs.write(at / "other", "llama", change=lambda p: jax.tree.map(lambda x: x + 1, p))
    return at


def run(capsys, *words):
    code = cli.run([*map(str, words)])
    return code, *capsys.readouterr()


def test_norms_are_those_of_the_products(folder):
    model = jaxlm.load(folder / "base").with_adapter(folder / "dora")
    leaves = tree.flatten(model.params)
    bare = {n: x for n, x in leaves.items() if not n.endswith("lora_m")}
    merged = tree.flatten(lora.merge(tree.unflatten(bare)))
    found = adapter_tables.show(str(folder / "dora"), str(folder / "base"))
    assert "DoRA" in found
    for part in ("attn/q", "attn/o", "mlp/down"):
        name = f"decoder/blocks/{part}/kernel"
        kernel = np.asarray(leaves[name])
        norm = np.linalg.norm(np.asarray(merged[name]) - kernel)
        row = next(
            line for line in found.splitlines() if line.startswith(f"decoder/blocks/{{}}/{part}")
        )
        *_, shown, share = row.split()
        assert float(shown) == pytest.approx(norm, rel=5e-3)
        assert float(share[:-1]) == pytest.approx(100 * norm / np.linalg.norm(kernel), rel=5e-3)


def test_show_and_diff_need_no_base(folder, capsys):
    code, out, _ = run(capsys, "adapter", "show", folder / "one")
    assert code == errors.DONE and "LoRA on" in out
    assert ["model.layers.{}.self_attn.q_proj", "3", "2", "4"] in [
        x.split()[:4] for x in out.splitlines()
    ]
    config = load_file(folder / "one" / "adapter_model.safetensors")
    assert f"{sum(x.size for x in config.values()) / 1e3:.2f}k parameters" in out
    code, out, _ = run(capsys, "adapter", "diff", folder / "one", folder / "one")
    assert (code, out) == (errors.DONE, "equal\n")
    found = adapter_tables.diff(str(folder / "one"), str(folder / "two"))
    assert "mlp.up_proj" in found and "3 layers -> 0" in found and "rank 2 -> 1" in found
    assert adapter_tables.diff(str(folder / "one"), str(folder / "dora")).count("magnitudes") == 7


def test_a_difference_is_a_share_of_the_product(folder, tmp_path):
    tensors = load_file(folder / "one" / "adapter_model.safetensors")
    (tmp_path / "moved").mkdir()
    for name, tensor in tensors.items():
        tensors[name] = (
            tensor * 1.25 if name.endswith("layers.1.mlp.up_proj.lora_B.weight") else tensor
        )
    save_file(tensors, tmp_path / "moved" / "adapter_model.safetensors")
    config = (folder / "one" / "adapter_config.json").read_text()
    (tmp_path / "moved" / "adapter_config.json").write_text(config)
    line, base = adapter_tables.diff(str(folder / "one"), str(tmp_path / "moved")).splitlines()
    assert line.startswith("model.layers.{}.mlp.up_proj") and base.startswith("base")
    squares = {
        name: np.square(tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]).sum()
        for name in (f"base_model.model.model.layers.{i}.mlp.up_proj" for i in range(3))
    }
    moved = squares["base_model.model.model.layers.1.mlp.up_proj"]
    wanted = 100 * np.sqrt(moved * 0.2**2 / sum(squares.values()))
    assert float(line.split()[-2][:-1]) == pytest.approx(wanted, rel=1e-2)


def test_a_merged_folder_gives_the_scores_of_base_and_adapter(folder, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        (folder / "dora" / "adapter_config.json").read_text()
    )
    file = "adapter_model.safetensors"
    save_file(load_file(folder / "dora" / file), adapter / file, {"jaxlm.quantized": "nf4"})
    words = ("adapter", "merge", folder / "base", adapter, tmp_path / "out")
    code, out, err = run(capsys, *words)
    assert code == errors.DONE and "lost of that" in out, err
    assert "was trained beside kernels in nf4" in err
    rows = [[1, 2, 3, 4, 5]]
    beside = jaxlm.load(folder / "base").with_adapter(folder / "dora").logits(rows)
    networks.assert_close({"x": jaxlm.load(tmp_path / "out").logits(rows)}, {"x": beside})
    code, out, err = run(capsys, *words)
    assert code == errors.CONFIG and "exists" in err and not out


def test_a_merge_that_loses_the_adapter_leaves_nothing_unless_forced(folder, tmp_path, capsys):
    """In bfloat16 what is added is smaller than the last bit of what it is added to."""
    tensors = load_file(folder / "one" / "adapter_model.safetensors")
    (tmp_path / "small").mkdir()
    small = {n: x * (2e-4 if ".lora_B" in n else 1) for n, x in tensors.items()}
    save_file(small, tmp_path / "small" / "adapter_model.safetensors")
    config = json.loads((folder / "one" / "adapter_config.json").read_text())
    (tmp_path / "small" / "adapter_config.json").write_text(json.dumps(config))
    words = ("adapter", "merge", folder / "half", tmp_path / "small", tmp_path / "out")
    code, out, err = run(capsys, *words)
    assert code == errors.CHECKPOINT and err.count("\n") == 1 and not out
    assert "of what the adapter changes is lost, rounded to bfloat16" in err
    assert not (tmp_path / "out").exists()
    code, out, _ = run(capsys, *words, "--dtype", "float32")
    assert code == errors.DONE and (tmp_path / "out").is_dir()
    code, *_ = run(capsys, *words[:-1], tmp_path / "forced", "--force")
    assert code == errors.DONE and (tmp_path / "forced").is_dir()


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("show", "base"), errors.CHECKPOINT, "adapter_config.json: cannot be read"),
        (("show", "run"), errors.CHECKPOINT, "that jaxlm adapter export wrote of this run"),
        (("show", "cut"), errors.CHECKPOINT, "cut off"),
        (("merge", "other", "one", "new"), errors.CHECKPOINT, "was trained on another base"),
        (("merge", "base", "cut", "new"), errors.CHECKPOINT, "cut off"),
        (("merge", "base", "one", "new", "--dtype", "int8"), errors.CONFIG, "no type of weights"),
        (("export", "base", "new"), errors.CONFIG, "trains no adapter beside a base"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, monkeypatch, words, code, line):
    monkeypatch.chdir(folder)
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "config.yaml").touch()
    if not (folder / "cut").exists():
        (folder / "cut").mkdir()
        for file in (folder / "one").iterdir():
            (folder / "cut" / file.name).write_bytes(file.read_bytes())
        weights = folder / "cut" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    found, out, err = run(capsys, "adapter", *words)
    assert found == code and line in err and err.count("\n") == 1 and not out, err
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["a/b"], {"a/b": 1.0}),
        (["a:0.7"], {"a": 0.7}),
        (["c:/a:-1", "b:2"], {"c:/a": -1.0, "b": 2.0}),
        (["a", "b:1"], "several are a sum"),
        (["a:1", "a:2"], "is there twice"),
    ],
)
def test_adapters_of_a_command_line_have_weights(given, wanted):
    from jaxlm.cli.setup import weights

    if isinstance(wanted, dict):
        assert weights(given) == wanted
    else:
        with pytest.raises(errors.ConfigError, match=wanted):
            weights(given)


def test_merged_figures_say_what_is_lost(folder):
    plain = jaxlm.load(folder / "base")
    applied = plain.with_adapter(folder / "one")
    found = merging.measured(plain, applied, plain)  # nothing of the adapter is left
    assert found["lost of that"] == pytest.approx(1, rel=0.5) and found["mean KL"] > 0.01
    with pytest.raises(CheckpointError, match="scores are"):
        raise CheckpointError("x", merging._reason(found, plain))
