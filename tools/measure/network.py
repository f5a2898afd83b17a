"""Hosts on one machine: network namespaces with addresses, names and links of a given speed.

Linux, root, and Debian's iproute2. tc's token bucket shapes both ends of each link.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

SUBNET, BRIDGE = "10.213.87", "jaxlm-br"


def address(host: int) -> str:
    """Of the host of that number, from 0."""
    return f"{SUBNET}.{host + 1}"


def reason() -> str:
    """Why there can be no hosts here; empty where there can."""
    if missing := [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]:
        return f"{missing[0]} is not on this machine"
    return "" if os.geteuid() == 0 else "network namespaces need root"


@contextmanager
def hosts(count: int, megabits: float | None = None) -> Iterator[list[list[str]]]:
    """For each of `count` hosts on one switch what runs a command there, before its words.

    megabits: a second, that each can send and, at the same time, receive; None: no limit.
    """
    with ExitStack() as stack:
        _do("ip", "link", "add", BRIDGE, "type", "bridge")
        stack.callback(_undo, "ip", "link", "del", BRIDGE)
        _do("ip", "link", "set", BRIDGE, "up")
        names = [f"jaxlm-host{host}" for host in range(count)]
        listed = "".join(f"{address(host)} {name}\n" for host, name in enumerate(names))
        for host, name in enumerate(names):
            own = Path("/etc/netns") / name  # what `ip netns exec` lays over /etc
            own.mkdir(parents=True, exist_ok=True)
            stack.callback(shutil.rmtree, own)
            (own / "hosts").write_text(f"127.0.0.1 localhost\n{listed}")
            _do("ip", "netns", "add", name)
            stack.callback(_undo, "ip", "netns", "del", name)
            stack.callback(_undo, "ip", "link", "del", f"jaxlm-v{host}")  # else it lingers
            _link(host, name, megabits)
        yield [_within(name) for name in names]


def cut(host: int) -> None:
    """Take a host's link down, as when it loses its power: nothing is closed or answered."""
    _do("ip", "link", "set", f"jaxlm-v{host}", "down")


def _link(host: int, name: str, megabits: float | None) -> None:
    outer, inner, there = f"jaxlm-v{host}", f"jaxlm-e{host}", ("ip", "netns", "exec", name)
    _do("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
    _do("ip", "link", "set", outer, "master", BRIDGE, "up")
    _do("ip", "link", "set", inner, "netns", name)
    _do(*there, "ip", "address", "add", f"{address(host)}/24", "dev", inner)
    _do(*there, "ip", "link", "set", inner, "up")
    _do(*there, "ip", "link", "set", "lo", "up")
    if megabits:
        shape = ("root", "tbf", "rate", f"{megabits}mbit", "burst", "64kb", "latency", "50ms")
        _do("tc", "qdisc", "add", "dev", outer, *shape)
        _do(*there, "tc", "qdisc", "add", "dev", inner, *shape)


def _within(name: str) -> list[str]:
    """A shell's `exec` in the namespace, with the host's name."""
    named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
    return ["ip", "netns", "exec", name, *named]


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


def _undo(*words: str) -> None:
    subprocess.run(words, capture_output=True)
