"""When a step does not fit: what takes the memory, and three overrides that help."""

from typing import Any

from jaxlm.core.errors import OutOfMemoryError
from jaxlm.observe import memory
from jaxlm.observe.progress import Progress
from jaxlm.plan.memory import Step, Use, estimate, memory_table, overrides, step_of
from jaxlm.training.assemble import Run


def check_fits(run: Run, voice: Progress) -> None:
    """Raise OutOfMemoryError when the step cannot fit by far, before anything is allocated.

    The estimate may be off by half, so only twice what there is counts. A CPU has the machine's
    memory, and a system that runs out of it kills the process without a word.
    """
    step, use = estimated(run)
    limit = memory.byte_limit() or memory.host_bytes()
    rows = 4 * step.batch * sum(run.data.columns.values())  # of a batch on the host; two are ahead
    if use.total > 2 * limit or 3 * rows > limit:
        raise out_of_memory(run, voice)


def out_of_memory(run: Run, voice: Progress, compiled: Any = None) -> OutOfMemoryError:
    """Say the table, and return the error that ends the run with exit code 8.

    compiled: the step as jax.stages.Compiled, where it came that far.
    """
    config = run.config
    step, use = estimated(run)
    advice = overrides(
        step,
        use,
        optimizer=config.optimizer.type,
        state_dtype=config.optimizer.state_dtype,
        param_dtype=config.param_dtype,
        frozen_dtype=config.frozen_dtype,
        lora_rank=config.lora.rank,
        pretrained=bool(config.init),
    )
    voice.say(memory_table(use, advice, limit=memory.byte_limit(), compiled=compiled))
    keys = ", ".join(line.split("  ")[0] for line in advice)
    return OutOfMemoryError("memory", f"the step does not fit on the device; try {keys}")


def estimated(run: Run) -> tuple[Step, Use]:
    """The step of a run as the estimate sees it, and the bytes of one device."""
    built, sizes = run.built, dict(run.layout.mesh.shape)
    step = step_of(run.config, run.spec, run.data.columns, sizes)
    return step, estimate(step, built.params, built.opt_state, built.mask)
