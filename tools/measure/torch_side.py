"""The same network, batch and optimizer in transformers and torch, eager or compiled."""

import time
from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

from measure.pipe import Answer, cores, most_resident, serve
from measure.tokens import batch as make_batch

LR, BETAS, EPS, DECAY, CLIP = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
ADAPTED = {"attention": ATTENTION, "mlp": MLP, "all-linear": ATTENTION + MLP}


def network(shape: dict[str, Any]) -> Any:
    """The transformers model of a case, in training mode."""
    model, attention = shape["model"], {"attn_implementation": "sdpa", "use_cache": False}
    if model.get("positions") == "learned":
        config = transformers.GPT2Config(
            vocab_size=model["vocab"],
            n_positions=shape["length"],
            n_embd=model["embed"],
            n_layer=model["layers"],
            n_head=model["heads"],
            n_inner=model["mlp"],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **attention,
        )
        return transformers.GPT2LMHeadModel(config).train()
    config = transformers.LlamaConfig(
        vocab_size=model["vocab"],
        hidden_size=model["embed"],
        intermediate_size=model["mlp"],
        num_hidden_layers=model["layers"],
        num_attention_heads=model["heads"],
        num_key_value_heads=model.get("kv_heads", model["heads"]),
        head_dim=model.get("head_dim", model["embed"] // model["heads"]),
        max_position_embeddings=shape["length"],
        tie_word_embeddings=model.get("tied", True),
        rms_norm_eps=1e-5,
        **attention,
    )
    return transformers.LlamaForCausalLM(config).train()


def made(shape: dict[str, Any], device: str) -> Any:
    """The model of a case on its device, where its weights are drawn, and its adapters."""
    torch.set_default_dtype(getattr(torch, shape["param_dtype"]))
    with torch.device(device):
        model = network(shape)
    torch.set_default_dtype(torch.float32)
    if not shape["lora_rank"]:
        return model
    import peft  # pyright: ignore[reportMissingImports]

    rank, targets = shape["lora_rank"], list(ADAPTED[shape["lora_targets"]])
    return peft.get_peft_model(
        model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    )


class Server:
    """Answers the orders of `measure.turns`."""

    def __init__(self) -> None:
        self._step: Callable[[], Any] = lambda: None
        self._device = "cpu"

    def build(self, order: Answer) -> Answer:
        """Make everything, and run the first step; torch.compile compiles in it."""
        shape = order["shape"]
        torch.manual_seed(0)
        torch.set_num_threads(cores())
        self._device = "cuda" if order["platform"] == "gpu" else "cpu"
        model = made(shape, self._device)
        start = time.perf_counter()
        self._step = _step(model, shape, self._device, compiled=order["mode"] == "compile")
        first = float(self._step())
        self._wait()
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "first_loss": first,
            "compile_seconds": time.perf_counter() - start,
            "threads": torch.get_num_threads(),
        }

    def run(self, order: Answer) -> Answer:
        """Do some steps and time them."""
        wall, used = time.perf_counter(), time.process_time()
        loss: Any = 0.0
        for _ in range(order["steps"]):
            loss = self._step()
        self._wait()
        on_gpu = self._device == "cuda"
        return {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - used,
            "loss": float(loss),
            "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else most_resident(),
        }

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def _step(model: Any, shape: dict[str, Any], device: str, *, compiled: bool) -> Callable[[], Any]:
    arrays = make_batch(shape)
    tokens = torch.from_numpy(arrays["tokens"]).long().to(device)
    targets = torch.from_numpy(arrays["targets"]).long().to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True
    )
    narrow = shape["dtype"] == "bfloat16"

    def forward(tokens: Any, targets: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=narrow):
            logits = model(input_ids=tokens).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    loss_of = torch.compile(forward) if compiled else forward

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    server = Server()
    serve({"build": server.build, "run": server.run})
