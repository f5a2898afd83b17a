"""The same network, adapters and rows in TRL's SFTTrainer, as its users run it."""

import gc
import tempfile
import time
from typing import Any

import datasets  # pyright: ignore[reportMissingImports]
import tokenizers
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
import trl  # pyright: ignore[reportMissingImports]

from measure.pipe import Answer, cores, most_resident, serve
from measure.tokens import batch as make_batch
from measure.torch_side import BETAS, CLIP, DECAY, EPS, LR, made

STEPS = 64
"""Most steps in a turn: the rows are there as often, so that no epoch ends within one."""


class Clock(transformers.TrainerCallback):
    """From the begin of the first step of a turn to the end of its last."""

    def __init__(self, device: str):
        self._device = device
        self.start = self.end = self.start_cpu = self.end_cpu = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Start with the first."""
        if state.global_step == 0:
            self._wait()
            self.start, self.start_cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Stop with the last."""
        if state.global_step == args.max_steps:
            self._wait()
            self.end, self.end_cpu = time.perf_counter(), time.process_time()

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


class Server:
    """Answers the orders of `measure.turns`."""

    def build(self, order: Answer) -> Answer:
        """Make everything, and run the first step: without checkpointing where that fits."""
        torch.set_num_threads(cores())
        self._device = "cuda" if order["platform"] == "gpu" else "cpu"
        start = time.perf_counter()
        for checkpointing in (False, True):
            try:
                self._trainer = self._made(order["shape"], checkpointing)
                first = self.run({"steps": 1})["loss"]
                break
            except torch.OutOfMemoryError:
                if checkpointing:
                    raise
            gc.collect()
            torch.cuda.empty_cache()
        return {
            "parameters": sum(p.numel() for p in self._trainer.model.parameters()),
            "first_loss": first,
            "compile_seconds": time.perf_counter() - start,
            "checkpointing": checkpointing,
        }

    def run(self, order: Answer) -> Answer:
        """Train for some steps."""
        trainer, clock = self._trainer, self._clock
        trainer.args.max_steps = trainer.args.logging_steps = order["steps"]
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        on_gpu = self._device == "cuda"
        return {
            "seconds": clock.end - clock.start,
            "cpu_seconds": clock.end_cpu - clock.start_cpu,
            "loss": losses[-1],
            "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else most_resident(),
        }

    def _made(self, shape: dict[str, Any], checkpointing: bool) -> Any:
        torch.manual_seed(0)
        model, self._clock = made(shape, self._device), Clock(self._device)
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<end>": 0}, "<end>"))
        tokens = make_batch(shape)["tokens"].tolist()
        config = trl.SFTConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=shape["batch"],
            max_length=shape["length"],
            learning_rate=LR,
            lr_scheduler_type="constant",
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            adam_epsilon=EPS,
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            bf16=shape["dtype"] == "bfloat16",
            use_cpu=self._device == "cpu",
            gradient_checkpointing=checkpointing,
            max_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        return trl.SFTTrainer(
            model,
            config,
            train_dataset=datasets.Dataset.from_dict({"input_ids": tokens * STEPS}),
            processing_class=transformers.PreTrainedTokenizerFast(
                tokenizer_object=words, eos_token="<end>", pad_token="<end>"
            ),
            callbacks=[self._clock],
        )


if __name__ == "__main__":
    server = Server()
    serve({"build": server.build, "run": server.run})
