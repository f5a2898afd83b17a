"""The run: step, log, evaluate, save, and end well."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from math import isfinite, nan
from pathlib import Path
from typing import Any

import jax

from jaxlm.checkpoint.owner import own
from jaxlm.config.schema import RunConfig
from jaxlm.core import distributed
from jaxlm.core.errors import (
    DONE,
    INTERNAL,
    STOPPED,
    DataError,
    JaxlmError,
    NumericError,
    StorageError,
)
from jaxlm.core.job import Told
from jaxlm.core.platform import choose_platform, use_compile_cache
from jaxlm.data.pipeline import prefetch
from jaxlm.observe import flops, goodput, memory, record, report, trackers
from jaxlm.observe.metrics import Metrics
from jaxlm.observe.profile import Profiler, check_reached
from jaxlm.observe.progress import Progress
from jaxlm.plan.memory import is_out_of_memory
from jaxlm.training import forgetting, resume
from jaxlm.training.assemble import Run, assemble
from jaxlm.training.classifier import headed
from jaxlm.training.evaluate import place
from jaxlm.training.joining import join
from jaxlm.training.labels import counted
from jaxlm.training.planned import planned
from jaxlm.training.schedule import unfinished
from jaxlm.training.shortage import check_fits, out_of_memory
from jaxlm.training.signals import Signals
from jaxlm.training.state import inherit
from jaxlm.training.step import TrainState, compile_step
from jaxlm.training.stragglers import Spent, Stragglers
from jaxlm.training.watchdog import Watchdog
from jaxlm.training.window import Window

DATA_KEYS = ("data", "tokenizer", "length", "seed")
"""Keys whose change changes what rows there are."""
CAUSES = {"data": "data", "checkpoint": "save", "evaluate": "evaluate", "waiting": "train"}
"""What a part of a row's seconds is to the goodput."""


def train(
    config: RunConfig,
    *,
    allow_change: tuple[str, ...] = (),
    told: Told | None = None,
    timeout: float = distributed.TIMEOUT,
    began: float | None = None,
) -> int:
    """Train until the run's last step, continuing what its directory holds.

    allow_change: keys or sections that may differ from the run that is continued, besides steps,
    log, checkpoint and evaluate. told, timeout: as of `join`. began: as of goodput.Clock. Returns
    DONE, or STOPPED after a signal, when everything is saved. Raises JaxlmError, one line with an
    exit code, for everything else.
    """
    config.watch()
    choose_platform(config.platform, deterministic=config.deterministic)
    use_compile_cache()
    trackers.require(config.log.trackers)
    hosts = join(config, told, timeout)
    folder, primary = Path(config.folder), distributed.index() == 0
    clock = goodput.Clock(folder, primary=primary, began=began)
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())

        def take() -> None:
            resume.check_free(folder)
            stack.enter_context(own(folder))

        distributed.agree("own", take)
        voice = Progress(folder, name=config.name, steps=config.steps or 0, primary=primary)
        stack.enter_context(voice)
        for line in hosts:
            voice.say(line)
        config = distributed.together("init", lambda: headed(counted(inherit(config))))
        accept = partial(resume.accept, config, folder, allow_change, voice.say)
        distributed.agree("go on", accept)
        run = assemble(config, folder, voice)
        voice.expect(run.steps)
        checkpoints = run.keeper.checkpoints
        newest = checkpoints.latest() or 0
        if newest >= run.steps and checkpoints.is_whole(newest):
            if primary and record.read(folder).get("status") != "done":  # killed at the very end
                record.finish(folder, "done", step=run.steps)
                report.write(folder)
            voice.say(f"{folder}: step {run.steps} is done; nothing left to do")
            return DONE
        if ended := forgetting.has_ended(folder, newest, config.evaluate.max_forgetting):
            voice.say(f"{folder}: step {newest} of {run.steps}, {ended}; nothing left to do")
            return DONE
        check_reached(config.profile.steps, run.steps)
        if line := unfinished(config.optimizer.schedule, run.steps):
            voice.warn(line)
        other_data = any(key.split(".")[0] in DATA_KEYS for key in allow_change)
        watchdog = stack.enter_context(Watchdog(config.watchdog))
        loop = Loop(run, voice, signals, watchdog, clock, other_data=other_data)
        stack.enter_context(distributed.last_word(loop.close))
        return loop.run()


class Loop:
    """The state of a run while it runs."""

    def __init__(
        self,
        run: Run,
        voice: Progress,
        signals: Signals,
        watchdog: Watchdog,
        clock: goodput.Clock,
        *,
        other_data: bool,
    ):
        """other_data: the data may be other than what the restored steps saw."""
        self._run, self._voice, self._signals, self._watchdog = run, voice, signals, watchdog
        self._clock, self._closing, self._closed = clock, threading.Lock(), False
        self._primary = distributed.index() == 0
        self._state, meta = self._first_state()
        self._step = int(self._state.step)
        if not other_data and meta.get("data", run.data.digest) != run.data.digest:
            raise DataError(
                "data.train",
                f"is not what the run saw until step {self._step}; put the files back, start "
                "another run, or add --allow-change data",
            )
        self._window = Window(meta.get("window"), run.config.optimizer.max_skipped)
        self._scored: dict[str, Any] = {}
        self._scored_before = meta.get("scored", self._step > 0 or not run.config.init)
        self._compiled: Any = None
        self._metrics = self._open_metrics()
        self._stragglers = Stragglers(voice.warn)
        self._seconds = {"data": 0.0, "checkpoint": 0.0, "evaluate": 0.0, "waiting": 0.0}

    def run(self) -> int:
        """Steps until the end or a signal. Returns the exit code."""
        run, config = self._run, self._run.config
        try:
            check_fits(run, self._voice)
            batch = place(run.data, run.layout, config.batch, run.rows)
            first = batch(self._step)
            steps = {_shapes(first): self._compile(first)}
            self._watchdog.beat()
            key = jax.random.fold_in(jax.random.key(config.seed), 2)
            self._signals.patient()
            batches = prefetch(batch, self._step, run.steps)
            with (
                closing(batches),
                Profiler(config.profile.steps, run.folder / "profile") as profiler,
            ):
                self._start = time.monotonic()
                self._clock.turn("train")
                self._clock.write(self._step)
                if not self._scored_before:  # what it starts from, or was stopped at
                    self._evaluate()
                    if forgot := forgetting.too_much(self._scored, config.evaluate.max_forgetting):
                        return self._end(DONE, forgot)
                while self._step < run.steps:
                    profiler.at(self._step, self._state)
                    with self._timed("data"):
                        rows = next(batches)
                    if (shapes := _shapes(rows)) not in steps:  # rows of another length
                        steps[shapes] = self._compile(rows)
                    with self._timed("waiting"):
                        self._state, metrics = steps[shapes](self._state, rows, key)
                        self._step += 1
                        self._window.add(self._step, metrics)
                    self._watchdog.beat(self._step)
                    if (end := self._after()) is not None:
                        return self._end(*end)
            return self._end(DONE, "done")
        except Exception as error:
            if is_out_of_memory(error):
                error = out_of_memory(run, self._voice, self._compiled)
            self._fail(error)
            raise error

    def _first_state(self) -> tuple[TrainState, dict[str, Any]]:
        """The state and meta of the newest good checkpoint, or a fresh state."""
        keeper, voice = self._run.keeper, self._voice
        with voice.phase("making or restoring the parameters"):
            try:
                if keeper.checkpoints.latest() is not None:
                    with self._clock.within("restore"):
                        return keeper.restore(self._run.spec, voice.warn)
                state = keeper.fresh(self._run.spec, voice.warn)
            except Exception as error:
                if is_out_of_memory(error):
                    raise out_of_memory(self._run, voice) from error
                raise
        keeper.check_space(state)
        return state, {}

    def _fail(self, error: Exception) -> None:
        """Commit what is being saved, and let the record say how the run ended."""
        distributed.hear_first(error)
        try:
            self._run.keeper.checkpoints.wait()
        except JaxlmError as other:
            self._voice.warn(str(other))
        status = str(error).splitlines()[0] if str(error) else type(error).__name__
        self.close(error.code if isinstance(error, JaxlmError) else INTERNAL, status)

    def close(self, code: int, status: str) -> None:
        """Write down how the run ends, once: another thread may where another host failed."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        if self._primary:
            record.finish(self._run.folder, status, step=self._step)
        self._clock.write(self._step)
        self._metrics.close(code)

    def _compile(self, batch: dict[str, Any]) -> Any:
        """The compiled step: compiled before the clock starts, and its memory known."""
        key = jax.random.key(0)
        with self._clock.within("compile"), self._voice.phase("compiling"):
            given = self._run.built.step, self._state, batch, key
            self._compiled = compile_step(*given, self._run.options)
        return self._compiled

    def _after(self) -> tuple[int, str] | None:
        """Everything that is due after a step. (exit code, status) where the run ends before its
        last one.
        """
        config, last = self._run.config, self._step == self._run.steps
        with self._timed("waiting"):
            stopped = None if last else self._signals.asked(self._step)
        if last or self._step % config.log.every == 0:
            self._log()
        scoring = last or (not stopped and _due(self._step, config.evaluate.every))
        if scoring:  # after a signal there is time to save alone
            self._evaluate()
        now = self._scored if self._scored.get("step") == self._step else {}
        forgot = None if last else forgetting.too_much(now, config.evaluate.max_forgetting)
        if last or stopped or forgot or _due(self._step, config.checkpoint.every):
            self._save(now.get("validation_loss", nan))
        if stopped:
            return STOPPED, f"stopped by {stopped}"
        return (DONE, forgot) if forgot else None

    def _log(self) -> None:
        run = self._run
        with self._timed("waiting"):
            self._window.drain()  # waits for the device, so the clock is read after it
        now = time.monotonic()
        parts, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        seconds = now - self._start - parts["evaluate"]
        self._start = now
        own = seconds - parts["checkpoint"]
        spent = {
            "seconds": seconds,
            "data_seconds": parts["data"],
            "checkpoint_seconds": parts["checkpoint"],
            "compute_seconds": own - parts["data"],
        }
        with self._timed("waiting"):
            self._stragglers.window(Spent(own, own - parts["waiting"], parts["data"]))
        row = self._window.row(self._step, spent)
        done = self._step - self._window.state["skipped"]
        row["learning_rate"] = float(run.keeper.optimizer.rate(max(done - 1, 0)))
        row["mfu"] = flops.mfu(
            row["tokens_per_second"],
            run.facts["flops_per_token"],
            run.facts["peak_flops"],
            run.layout.mesh.size,
        )
        row["memory_bytes"] = memory.peak_bytes()
        self._clock.write(self._step)
        row["goodput"] = self._clock.spent.share
        self._metrics.row(row)
        self._voice.row(row)

    def _evaluate(self) -> None:
        if not self._run.gauges:
            return
        row: dict[str, Any] = {"step": self._step}
        with self._timed("evaluate"), self._voice.phase("evaluating"):
            params = self._run.keeper.evaluated(self._state)
            for gauge in self._run.gauges:
                row |= gauge(self._step, params, self._watchdog.beat)
        if line := forgetting.unknown(row, self._run.config.evaluate.max_forgetting):
            self._voice.warn(line)
        self._scored = row
        self._metrics.row(row)
        self._voice.row(row)

    def _save(self, loss: float) -> None:
        """loss: of the validation at this step; NaN when there was none."""
        with self._timed("waiting"):
            self._window.drain()
        self._metrics.sync()
        due = _due(self._step, self._run.config.evaluate.every)
        meta = {
            "window": self._window.state,
            "steps": self._run.steps,
            "data": self._run.data.digest,
            "scored": self._scored.get("step") == self._step or not due,
        }
        score = loss if isfinite(loss) else None
        with self._timed("checkpoint"):
            try:
                saved = self._run.keeper.save(self._state, meta, score)
            except StorageError as error:  # of the save before: this one may find room again
                self._voice.warn(str(error))
                saved = self._run.keeper.save(self._state, meta, score)
        if not saved:
            raise NumericError(
                f"step {self._step}",
                "a parameter or the optimizer's state is NaN or infinite: it is not saved; lower "
                "optimizer.learning_rate and continue from the last checkpoint with "
                "--allow-change optimizer",
            )

    def _end(self, code: int, status: str) -> int:
        """Wait for the last save, write the report, and say what the run leaves behind."""
        run, voice = self._run, self._voice
        self._watchdog.beat()
        with self._clock.within("save"), voice.phase("saving"):
            run.keeper.checkpoints.wait()
        if unread := run.config.unread():
            voice.warn(f"set, and without effect in this run: {', '.join(unread)}")
        if skipped := self._window.state["skipped"]:
            voice.warn(
                f"{skipped} of {self._step} updates were left out: the gradient was NaN or "
                "infinite; a lower optimizer.learning_rate or optimizer.clip may help"
            )
        self.close(code, status)
        if self._primary:
            report.write(run.folder)
        voice.say(f"goodput {goodput.line(self._clock.spent)}")
        if code == DONE:
            voice.say(f"{run.folder}: step {self._step} of {run.steps}, {status}")
        else:
            voice.say(f"{status} at step {self._step}, saved; the same command continues")
        return code

    def _open_metrics(self) -> Metrics:
        run, voice = self._run, self._voice
        config = run.config
        digests = {
            "config": resume.identity(config),
            "tokenizer": run.tokenizer.digest,
            "data": run.data.digest,
        }
        mesh = dict(run.layout.mesh.shape)
        facts = record.record(digests, mesh=mesh, model=run.facts, planned=planned(run))
        started: list[trackers.Tracker] = []

        def begin() -> None:
            for line in record.begin(run.folder, facts, step=self._step, steps=run.steps):
                voice.warn(line)
            self._clock.begin(self._step)
            started[:] = trackers.start(
                config.log.trackers,
                run.folder,
                name=config.name,
                config=config.model_dump(mode="json"),
                step=self._step,
                warn=voice.warn,
            )
            before = Metrics(run.folder, primary=True, warn=voice.warn)
            before.cut(self._step, again=not self._scored_before)

        distributed.agree("begin", begin)
        return Metrics(run.folder, started, primary=self._primary, warn=voice.warn)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.monotonic()
        with self._clock.within(CAUSES[part]):
            yield
        self._seconds[part] += time.monotonic() - start


def _shapes(batch: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in batch.values())


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
