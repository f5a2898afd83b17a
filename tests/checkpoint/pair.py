"""One of two processes with four devices each: `pair.py FOLDER`, in the environment of a job.

The folder holds step 1, saved by one process. What it finds goes, a line each, into found-I beside
the folder: gloo writes to stdout in the middle of lines.
"""

import json
import os
import resource
import socket
import sys

import jax
from conftest import Kit

from jaxlm.checkpoint import inspect
from jaxlm.core import distributed
from jaxlm.core.errors import ClusterError, JaxlmError, StorageError


def say(*words: object) -> None:
    with open(f"{sys.argv[1]}/../found-{distributed.index()}", "a") as file:
        print(*words, file=file)


def messages() -> None:
    """What the processes tell each other, before a device is touched."""
    index = distributed.index()
    assert distributed.gather("value", f"of {index}") == ["of 0", "of 1"]
    assert distributed.gather("value", f"again {index}") == ["again 0", "again 1"]
    assert distributed.agree("agree", lambda: {"index": distributed.index()}) == {"index": 0}
    distributed.gather("here", "")

    def fail_on(process: int) -> int:
        if index == process:
            raise StorageError("disk", "is full")
        return index

    for process in (0, 1):
        try:
            distributed.together("together", lambda process=process: fail_on(process))
        except StorageError as error:
            assert ("on process" in str(error)) == (index != process), error
    try:
        distributed.agree("refuse", lambda: fail_on(0))
    except StorageError as error:
        assert error.where == "disk"
    try:
        distributed.gather("nobody", "", timeout=0.2) if index == 0 else None
    except ClusterError as error:
        assert "process 1: did not answer at 'nobody'" in str(error)
    host, port = os.environ["JAX_COORDINATOR_ADDRESS"].split(":")
    other = socket.socket()
    assert other.connect_ex((host, int(port))) == 0
    assert other.connect_ex(("127.0.0.2", int(port))) != 0  # its own interface and no other


def checkpoints(folder: str) -> None:
    kit = Kit(folder)
    store = kit.open(keep=9)
    target = kit.like(kit.make(1, {"data": 2, "fsdp": 4}), {"data": 2, "fsdp": 4})
    step, params, opt, _ = store.restore(*target)
    say("restored", step, equal(kit, (params, opt), kit.make(1, {"data": 2, "fsdp": 4})))
    assert store.save(2, *kit.make(2, {"fsdp": 4, "tensor": 2}), {"position": 16})
    store.wait()
    say("saved", store.latest(), inspect.digest(folder)[1])

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = kit.make(3, {"fsdp": 4, "tensor": 2})
    if distributed.index() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, limits[1]))
    try:
        store.save(3, *state, {})
        store.wait()
    except JaxlmError as error:
        say("failed", error.code, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    distributed.gather("limits", "")
    say("left", sorted(os.listdir(folder)))

    assert store.save(3, *state, {"position": 24})
    store.wait()
    if distributed.index() == 1:
        (store.folder / "3" / "params" / "_METADATA").write_text("{}")
    distributed.gather("damaged", "")
    step, params, opt, _ = store.restore(*target)
    say("fallback", step, equal(kit, (params, opt), kit.make(2, {"data": 2, "fsdp": 4})))
    say("warned", json.dumps(kit.lines))


def equal(kit: Kit, a: tuple, b: tuple) -> bool:
    """Equal in this process's shards."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        kit.same(one.data, two.data)
        for x, y in pairs
        for one, two in zip(x.addressable_shards, y.addressable_shards, strict=True)
    )


if __name__ == "__main__":
    distributed.initialize()
    messages()
    checkpoints(sys.argv[1])
    distributed.gather("end", "")
    distributed.exit_now(0)
