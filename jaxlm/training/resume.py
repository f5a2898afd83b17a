"""May this run go on in this directory? What may change, and what the change means."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlm.checkpoint.inspect import steps as committed
from jaxlm.checkpoint.owner import NAME as OWNER
from jaxlm.config.load import changes, dump, load
from jaxlm.config.schema import RunConfig
from jaxlm.core.errors import CheckpointError, ConfigError
from jaxlm.models.spec import RUNTIME
from jaxlm.training.schedule import schedule

MAY_CHANGE = ("steps", "log", "checkpoint", "evaluate", "run_dir", "profile", "watchdog")
"""Keys and sections whose change leaves the run what it was."""
DECAYS = ("linear", "cosine", "wsd")


def check_free(folder: Path) -> None:
    """Raise ConfigError when `folder` holds what a run would replace, and no run ever owned it."""
    if (folder / OWNER).exists():
        return
    for name in ("config.yaml", "tokenizer", "checkpoints"):
        if (folder / name).exists():
            raise ConfigError(
                "run_dir", f"{folder / name} is there, and no run made it; choose another folder"
            )


def accept(
    config: RunConfig, folder: Path, allow_change: tuple[str, ...], say: Callable[[str], None]
) -> None:
    """Compare with the configuration that is there, and write the new one.

    Raises ConfigError naming key: old -> new for a change that would make it another run, unless
    the key or its section is in `allow_change`; CheckpointError when the directory holds a run
    whose configuration is gone.
    """
    path, checkpoints = folder / "config.yaml", folder / "checkpoints"
    begun = bool(committed(checkpoints))
    if begun and not path.exists():
        raise CheckpointError(str(folder), "holds checkpoints and no config.yaml; move it away")
    old = load(str(path), []) if begun else config
    if not begun:  # nothing to continue: what an earlier try left is of its own settings
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    done = committed(checkpoints)[-1] if begun else 0
    if begun and config.steps and config.steps < done:
        say(f"{folder}: {done} steps are done, more than steps={config.steps}")
        return
    allowed = (*MAY_CHANGE, *allow_change)
    if fixed := [line for line in changes(old, config) if _is_fixed(line[0], config)]:
        key, was, now = fixed[0]
        raise ConfigError(
            str(folder),
            f"its checkpoints hold {key}={_shown(was)}, not {_shown(now)}; write the old one, or "
            "choose another run_dir or name",
        )
    if config.batch != old.batch:
        raise ConfigError(
            "batch",
            f"{old.batch} -> {config.batch}: the data position counts in batches; write "
            f"batch={old.batch}, or start another run with init={folder}",
        )
    refused = [
        f"{key}: {_shown(was)} -> {_shown(now)}"
        for key, was, now in changes(old, config)
        if not any(key == name or key.startswith(f"{name}.") for name in allowed)
    ]
    if refused:
        keys = " ".join(f"--allow-change {line.split(':')[0]}" for line in refused)
        raise ConfigError(
            str(folder),
            f"continues a run with other settings ({'; '.join(refused)}); "
            f"write the old ones, choose another run_dir or name, or add {keys}",
        )
    if old.steps and config.steps and old.steps != config.steps:
        _say_rate(old, config, say)
    _write(path, config)


def _is_fixed(key: str, config: RunConfig) -> bool:
    """Whether a checkpoint of another value does not fit: no --allow-change makes it.

    One without a base holds the adapters' scale and dropout too.
    """
    section, _, name = key.partition(".")
    shape = section == "model" and name not in RUNTIME
    adapters = key in {f"lora.{each}" for each in ("rank", "targets", "dora", "init", "save")}
    held = not config.init and key in ("lora.alpha", "lora.rslora", "lora.dropout")
    return shape or adapters or held or key in ("init", "optimizer.type", "trainable")


def _say_rate(old: RunConfig, new: RunConfig, say: Callable[[str], None]) -> None:
    assert old.steps and new.steps
    kind = new.optimizer.schedule.type
    if kind not in DECAYS:
        return
    at = min(old.steps, new.steps)
    was, now = (
        float(schedule(c.optimizer.schedule, c.optimizer.learning_rate, c.steps or 1)(at))
        for c in (old, new)
    )
    say(
        f"steps {old.steps} -> {new.steps}: the {kind} schedule now ends there; "
        f"the rate at step {at} was {was:.3g} and is {now:.3g}"
    )


def identity(config: RunConfig) -> str:
    """Hash of everything that makes the run what it is: all but the keys that may change."""
    kept = config.model_dump(mode="json", exclude=set(MAY_CHANGE))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def steps_of(config: RunConfig, rows_for: Callable[[float], int]) -> tuple[int, int | None]:
    """(updates in all, rows in all): the rows only when `epochs` says where the data ends."""
    if config.epochs is None:
        assert config.steps
        return config.steps, None
    rows = rows_for(config.epochs)
    return math.ceil(rows / config.batch), rows


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def _write(path: Path, config: RunConfig) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(dump(config), encoding="utf-8")
    temporary.replace(path)
