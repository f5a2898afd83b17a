"""Where rows go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow, Trackio.

Off by default. Each runs in a thread of its own behind a queue, so that a tracker that fails or
hangs, at its start, on a row or at its end, costs one warning and never a step. A run keeps one id
in `tracker.json`, by which a resume continues the same curve. None is given the environment or the
command line.
"""

import importlib.util
import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.core.errors import ConfigError
from jaxlm.observe.metrics import Row, replace

PROJECT = "jaxlm"
_ROWS_WAITING = 10_000
_SECONDS_TO_END = 30.0


class Run(NamedTuple):
    """What a tracker is told about the run."""

    folder: Path
    name: str
    id: str
    """Stays the same when the run is resumed."""
    config: dict[str, Any]
    """Dotted keys."""
    step: int
    """The step that this start continues from."""


class Calls(NamedTuple):
    """What a tracker does, called from its own thread; any exception ends the tracker."""

    row: Callable[[int, dict[str, float]], None]
    """(step, numbers)."""
    close: Callable[[int], None]
    """(exit code of the run)."""


def _tensorboard(run: Run) -> Calls:
    from tensorboardX import SummaryWriter

    # purge_step hides what an earlier start wrote beyond the checkpoint that this one continues
    purge = run.step + 1 if run.step else None
    writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge)

    def row(step: int, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)

    return Calls(row, lambda code: writer.close())


def _wandb(run: Run) -> Calls:
    import wandb  # pyright: ignore[reportMissingImports]

    offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")
    if not offline and not wandb.login(prompt=False):  # a prompt would block a batch job for ever
        raise RuntimeError("no API key: run `wandb login`, or set WANDB_MODE=offline")
    quiet = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )
    wandb_run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        id=run.id,
        resume="allow",
        dir=str(run.folder),
        config=run.config,
        allow_val_change=True,
        settings=quiet,
    )
    # its own step must never fall, which a resume does: ours is an axis instead
    wandb_run.define_metric("*", step_metric="step")
    return Calls(
        lambda step, numbers: wandb_run.log({"step": step, **numbers}),
        lambda code: wandb_run.finish(exit_code=code),
    )


def _mlflow(run: Run) -> Calls:
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

    client = MlflowClient()
    project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(project)
    place = experiment.experiment_id if experiment else client.create_experiment(project)
    known = client.search_runs([place], f"tags.jaxlm_id = '{run.id}'", max_results=1)
    if known:
        run_id = known[0].info.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = client.create_run(place, tags={"jaxlm_id": run.id}, run_name=run.name).info.run_id
        params = [Param(key, str(value)) for key, value in run.config.items()]
        for start in range(0, len(params), 100):  # the server takes 100 at once
            client.log_batch(run_id, params=params[start : start + 100])

    def row(step: int, numbers: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        client.log_batch(run_id, [Metric(key, value, now, step) for key, value in numbers.items()])

    def close(code: int) -> None:
        client.set_terminated(run_id, "FINISHED" if code == 0 else "FAILED")

    return Calls(row, close)


def _trackio(run: Run) -> Calls:
    import trackio  # pyright: ignore[reportMissingImports]

    trackio_run = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=f"{run.name}-{run.id}",  # it resumes by name
        resume="allow",
        config=run.config,
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return Calls(
        lambda step, numbers: trackio_run.log(numbers, step=step),
        lambda code: trackio_run.finish(),
    )


TRACKERS: dict[str, tuple[str, Callable[[Run], Calls]]] = {
    "tensorboard": ("tensorboardX", _tensorboard),
    "wandb": ("wandb", _wandb),
    "mlflow": ("mlflow", _mlflow),
    "trackio": ("trackio", _trackio),
}
"""Name in `log.trackers` -> the package it needs, and what starts it."""


class Tracker:
    """One tracker in a thread of its own. No call raises; only `close` waits, and not for long."""

    def __init__(
        self,
        name: str,
        begin: Callable[[], Calls],
        warn: Callable[[str], None],
        *,
        seconds_to_end: float = _SECONDS_TO_END,
    ):
        self._name, self._begin, self._warn = name, begin, warn
        self._seconds_to_end = seconds_to_end
        self._queue: queue.Queue[tuple[int, dict[str, float]] | int] = queue.Queue(_ROWS_WAITING)
        self._dropped = threading.Event()
        # a daemon, so that one that hangs cannot keep the process from ending
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def row(self, row: Row) -> None:
        """Hand over the numbers of a row; what is not a number stays in metrics.jsonl."""
        numbers = {key: value for key, value in row.items() if _is_number(key, value)}
        self._put((row["step"], numbers))

    def close(self, code: int) -> None:
        """Wait, not for ever, until every row is handed on. code: exit code of the run."""
        self._put(code)
        self._thread.join(self._seconds_to_end)
        if self._thread.is_alive():
            self._drop(
                f"is not done after {self._seconds_to_end:g} s; its last rows may be missing"
            )

    def _put(self, item: tuple[int, dict[str, float]] | int) -> None:
        if not self._dropped.is_set():
            try:
                self._queue.put_nowait(item)
            except queue.Full:
                self._drop("does not keep up and is dropped")

    def _work(self) -> None:
        try:
            calls = self._begin()
            while not self._dropped.is_set():
                item = self._queue.get()
                if isinstance(item, int):
                    return calls.close(item)
                calls.row(*item)
        except Exception as error:  # whatever a tracker raises, training goes on
            first = (str(error).splitlines() or [""])[0]
            self._drop(f"failed and is dropped ({type(error).__name__}: {first})")

    def _drop(self, why: str) -> None:
        if not self._dropped.is_set():
            self._dropped.set()
            self._warn(f"tracker {self._name} {why}; training goes on")


def require(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker that is unknown or whose package is not installed.

    Call before anything slow: a run must not find this out after an hour.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError("log.trackers", f"no {name!r}; use one of {', '.join(TRACKERS)}")
        if importlib.util.find_spec(TRACKERS[name][0]) is None:
            what = f"{name} is not installed; in the checkout, run `pip install -e '.[{name}]'`"
            raise ConfigError("log.trackers", what)


def start(
    names: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    name: str,
    config: dict[str, Any],
    step: int,
    warn: Callable[[str], None],
) -> list[Tracker]:
    """Start the named trackers for a run that continues from `step`; process 0 alone calls this.

    config: plain values by key, nested or not, shown beside the curves. warn: gets one line per
    tracker that fails, from its thread. Raises ConfigError as `require` does.
    """
    require(names)
    if not names:
        return []
    run = Run(Path(folder), name, _id(Path(folder)), _flat(config), step)
    return [Tracker(each, lambda each=each: TRACKERS[each][1](run), warn) for each in names]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys: a tracker of flat keys would show a section as one long text."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _id(folder: Path) -> str:
    path = folder / "tracker.json"
    try:
        return str(json.loads(path.read_text())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        new = uuid.uuid4().hex[:12]
    folder.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps({"id": new}).encode() + b"\n")
    return new


def _is_number(key: str, value: Any) -> bool:
    return key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
