"""Checkpoints that are whole or absent, saved while training goes on.

RUN/checkpoints/STEP/{params/, opt/, meta/meta.json, MANIFEST.json}. A save digests every array on
the devices, copies it to host memory and returns; a thread then writes it into `.tmp-STEP-...`,
each process its own shards and the sums of its files, everything flushed to the disk. When all
processes report success, process 0 writes MANIFEST.json and renames the folder to STEP, reads it
back, and only then lets older checkpoints go. On object stores, which have no rename, the folder is
STEP from the start and the manifest, written last, is the commit.
"""

import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import jax
from etils import epath

from jaxlm.checkpoint import arrays, digest, files, inspect, manifest, restore, retention
from jaxlm.checkpoint.manifest import META, NAME, DamagedError, File, Manifest
from jaxlm.checkpoint.restore import Store
from jaxlm.core import distributed, tree, words
from jaxlm.core.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    JaxlmError,
    StorageError,
)

_log = logging.getLogger(__name__)
_TEMPORARY, _STALE = ".tmp-", ".stale-"


class Checkpoints:
    """The checkpoints in `folder` (RUN/checkpoints), written by this run alone (see `owner`).

    keep: newest ones that stay; keep_every: multiples of it stay too; keep_best: so does the one
    with the lowest score. warn: takes one line, from any thread. All processes make the same calls.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        keep: int = 2,
        keep_every: int = 0,
        keep_best: bool = False,
        warn: Callable[[str], None] = _log.warning,
    ):
        self.folder = epath.Path(folder)
        if files.is_local(folder):
            self.folder = self.folder.absolute()  # orbax takes no other
            if set(str(self.folder)) & set("[]"):
                what = "holds a bracket, which arrays' files cannot have in their path"
                raise ConfigError(str(self.folder), f"{what}; use a folder of another name")
        self._keep, self._keep_every, self._keep_best = keep, keep_every, keep_best
        self._warn = warn
        self._newest: int | None = None  # of this run's own line: restored or saved by it
        self._thread: threading.Thread | None = None
        self._error: JaxlmError | None = None

    def latest(self) -> int | None:
        """The newest committed step."""
        known = distributed.agree("checkpoint.latest", lambda: inspect.steps(self.folder))
        return known[-1] if known else None

    def is_whole(self, step: int) -> bool:
        """Whether a committed step's files are there, by their sizes and the sums of small ones."""

        def look() -> bool:
            with suppress(CheckpointError):
                found = manifest.load(self.folder / str(step))
                return not files.problems(self.folder / str(step), found, full=False)
            return False

        return distributed.agree("checkpoint.whole", look)

    def check_space(self, nbytes: int) -> None:
        """Before the first step: raise StorageError unless twice `nbytes` can be written here."""
        self.wait()
        distributed.agree("checkpoint.space", lambda: self._check_space(2 * nbytes))

    def save(
        self,
        step: int,
        params: Any,
        opt: Any,
        meta: dict[str, Any],
        score: float | None = None,
        *,
        copy: bool = True,
    ) -> bool:
        """Start to save; training may go on, and donate these arrays, as soon as it returns.

        params, opt: trees of jax.Array, of what is to be written (leave a frozen base out and name
        it in meta). meta: anything JSON can hold; meta["position"], the data position, enters the
        checkpoint's digest. score: lower is better. copy: False for arrays that nobody donates, of
        which the host then needs no second copy. Returns False, with a warning, when a value is
        NaN or infinite: such a state never becomes the newest good one. The same step with the same
        digest is not written again; steps newer than the restored one are set aside, and removed
        after the commit. Raises StorageError of the save before, once (call again to save this
        step), or when the disk has too little space; CheckpointError when the folder holds steps
        that this run did not restore.
        """
        self.wait()
        if self._newest is not None and step < self._newest:
            raise ValueError(f"step {step} is older than {self._newest}, the newest of this run")
        text = manifest.canonical(meta)
        leaves = {"params": arrays.by_name(params), "opt": arrays.by_name(opt)}
        sums, bad = digest.digests(arrays.joined(leaves))
        if bad:
            self._warn(
                f"{self.folder}: step {step} is not saved: NaN or infinity in {arrays.some(bad)}"
            )
            return False
        items = {item: {name: sums[f"{item}/{name}"] for name in leaves[item]} for item in leaves}
        draft = Manifest(
            step,
            datetime.now(UTC).isoformat(timespec="seconds"),
            score if score is not None and abs(score) < float("inf") else None,
            manifest.chain(items, meta.get("position")),
            items,
            {},
        )
        nbytes = sum(tree.nbytes(part) for part in leaves.values())
        name = distributed.agree("checkpoint.prepare", lambda: self._prepare(draft, nbytes))
        if name is None:
            return True
        copied = threading.Event()
        copies = {item: arrays.host_copy(part) if copy else part for item, part in leaves.items()}
        self._thread = threading.Thread(
            target=self._finish,
            args=(draft, copies, text, self.folder / name, copied),
            name=f"checkpoint-{step}",
        )
        self._thread.start()
        copied.wait()
        return True

    def wait(self) -> None:
        """Until the last save is committed. Raises its StorageError; afterwards nothing pends."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def restore(
        self,
        params_like: Any,
        opt_like: Any = None,
        step: int | None = None,
        store: Store | None = None,
    ) -> tuple[int, Any, Any, dict[str, Any]]:
        """(step, params, opt, meta) of the newest checkpoint that reads back as it was saved.

        *_like: trees of jax.ShapeDtypeStruct with the shardings wanted, on any mesh; opt_like None
        reads no optimizer state. A damaged checkpoint is warned of, with its tensor and file, and
        the one before is taken. step: that one and no other. store: what the tensors become, one
        after the other. Raises CheckpointError when none is good, or when names, shapes or dtypes
        differ (nothing is cast).
        """
        self.wait()
        known = distributed.agree("checkpoint.steps", lambda: inspect.steps(self.folder))
        if not known or step not in (None, *known):
            what = f"holds no checkpoint of step {step}" if step else "holds no checkpoint"
            raise CheckpointError(str(self.folder), f"{what}; its steps: {known or 'none'}")
        likes = {"params": params_like} | ({} if opt_like is None else {"opt": opt_like})
        wanted = known[::-1] if step is None else [step]
        for older, candidate in enumerate(wanted, 1):
            try:
                found, meta = restore.read(self.folder / str(candidate), likes, store)
            except DamagedError as error:
                if older == len(wanted):
                    raise CheckpointError(
                        str(self.folder), f"no good checkpoint is left; the last tried: {error}"
                    ) from error
                self._warn(f"{error}; falling back to step {wanted[older]}")
                continue
            self._newest = candidate
            return candidate, found["params"], found.get("opt"), meta
        raise AssertionError("unreachable")

    def _prepare(self, draft: Manifest, nbytes: int) -> str | None:
        """Make room and a folder to write in; its name, or None if the step is there already."""
        with _storage(self.folder, draft.step):
            known = inspect.steps(self.folder)
            if known and self._newest is None:
                raise CheckpointError(
                    str(self.folder),
                    f"holds step {known[-1]}, which this run did not restore; "
                    "continue from it or choose another run_dir",
                )
            if draft.step in known and draft.step == self._newest and self._is_saved(draft):
                return None
            for step in known:
                if step >= draft.step or step > (self._newest or 0):
                    self._set_aside(step)
            self._check_space(nbytes + nbytes // 20)
            name = str(draft.step)
            if files.is_local(self.folder):
                name = f"{_TEMPORARY}{name}-{uuid.uuid4().hex[:8]}"
            for item in ("params", "opt", "meta"):
                (self.folder / name / item).mkdir(parents=True)
            return name

    def _is_saved(self, draft: Manifest) -> bool:
        path = self.folder / str(draft.step)
        with suppress(CheckpointError):
            there = manifest.load(path)
            return there.digest == draft.digest and not files.problems(path, there, full=False)
        return False

    def _clean(self) -> None:
        """Remove what a killed or failed save or removal left. The owner of the folder alone."""
        for path in self.folder.iterdir():
            uncommitted = path.name.isdecimal() and not (path / NAME).exists()
            if path.name.startswith(_TEMPORARY) or uncommitted:
                files.remove(path)

    def _set_aside(self, step: int) -> None:
        path = self.folder / str(step)
        if files.is_local(path):
            path.rename(self.folder / f"{_STALE}{step}-{uuid.uuid4().hex[:8]}")
        else:  # a rename would copy every object
            files.remove(path)

    def _check_space(self, nbytes: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{_TEMPORARY}probe").mkdir(exist_ok=True)
            self._clean()
            free = files.free(self.folder)
        except OSError as error:
            raise StorageError(
                str(self.folder), f"cannot be written ({_line(error)}); choose another run_dir"
            ) from error
        if free is not None and free < nbytes:
            raise StorageError(
                str(self.folder),
                f"has {words.size(free)} free and needs {words.size(nbytes)}; "
                "free some, lower checkpoint.keep, or choose another run_dir",
            )

    def _finish(
        self,
        draft: Manifest,
        leaves: dict[str, dict[str, jax.Array]],
        meta: str,
        work: epath.Path,
        copied: threading.Event,
    ) -> None:
        """In the thread: write, agree, commit. A failure is kept for the next `wait`."""

        def write() -> None:
            with _storage(self.folder, draft.step):
                _write(draft, leaves, meta, work, copied)

        def commit() -> None:
            with _storage(self.folder, draft.step):
                self._commit(draft, work)

        try:
            distributed.together("checkpoint.written", write)
            distributed.agree("checkpoint.committed", commit)
            self._newest = draft.step
        except Exception as error:
            self._error = error if isinstance(error, JaxlmError) else _failed(self.folder, error)
            self._warn(str(self._error))  # now, for a program that ends without asking
            if distributed.index() == 0:
                files.discard(work)
        finally:
            copied.set()

    def _commit(self, draft: Manifest, work: epath.Path) -> None:
        """Process 0, after all have written: sum up, rename, read back, and let older ones go."""
        for item in draft.items:
            arrays.finalize(work / item)
        found: dict[str, File] = {}
        for process in range(distributed.count()):
            report = json.loads((work / "meta" / f"process-{process}.json").read_bytes())
            if report["digest"] != draft.digest:
                raise ClusterError(f"process {process}", "saved other values than process 0")
            found |= {name: File(**row) for name, row in report["files"].items()}
        names, folders = files.listing(work)
        rest = [name for name in names if name not in found]
        found |= {name: files.measure(work / name) for name in rest}
        files.sync(work / name for name in rest)
        final = replace(draft, files=dict(sorted(found.items())))
        files.write(work / NAME, manifest.dump(final))
        files.sync([*(work / name for name in folders), work])
        path = self.folder / str(draft.step)
        if work != path:
            work.rename(path)
            files.sync([self.folder])
        if manifest.load(path) != final or files.problems(path, final, full=False):
            raise StorageError(str(path), "does not read back as it was written; check the disk")
        try:
            self._retain()
        except OSError as error:  # the commit stands; what stays is removed after the next one
            self._warn(f"{self.folder}: an older checkpoint could not be removed: {_line(error)}")

    def _retain(self) -> None:
        scores = {}
        for step in inspect.steps(self.folder):
            with suppress(CheckpointError):
                scores[step] = manifest.load(self.folder / str(step)).score
        keep = retention.kept(scores, last=self._keep, every=self._keep_every, best=self._keep_best)
        for step in scores.keys() - keep:
            if not (self.folder / str(step) / retention.MARK).exists():
                files.remove(self.folder / str(step))
        for path in self.folder.iterdir():
            if path.name.startswith(_STALE):
                files.remove(path)


def _write(
    draft: Manifest,
    leaves: dict[str, dict[str, jax.Array]],
    meta: str,
    work: epath.Path,
    copied: threading.Event,
) -> None:
    """Write the shards of this process, flushed, and `meta/process-I.json` with their sums."""
    process = distributed.index()
    futures = [
        future for item, part in leaves.items() for future in arrays.write(work / item, part)
    ]
    copied.set()
    leaves.clear()
    arrays.wait(futures)
    roots = [f"{item}/ocdbt.process_{process}" for item in draft.items]
    own = [f"{root}/{name}" for root in roots for name in files.listing(work / root)[0]]
    files.sync(work / name for name in own)
    sums = {name: asdict(files.measure(work / name)) for name in own}
    report = json.dumps({"digest": draft.digest, "files": sums}, indent=1)
    files.write(work / "meta" / f"process-{process}.json", report.encode())
    if process == 0:
        files.write(work / META, meta.encode())


def _line(error: Exception) -> str:
    """The cause in one line: tensorstore buries the disk's answer in a page."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return " ".join(str(error).split())[:200] or type(error).__name__


def _failed(folder: epath.Path, error: Exception) -> StorageError:
    return StorageError(str(folder), f"a checkpoint was not saved: {_line(error)}")


@contextmanager
def _storage(folder: epath.Path, step: int) -> Iterator[None]:
    """Whatever goes wrong while writing is one line, exit code 7."""
    try:
        yield
    except JaxlmError:
        raise
    except Exception as error:
        raise StorageError(
            str(folder), f"step {step} is not saved: {_line(error)}; check the disk and run again"
        ) from error
