"""Hosts that network namespaces stand for: they know each other, and nothing of them stays."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
MEET = """
import socket, sys
name, other, address = sys.argv[1:]
assert socket.gethostname() == name and socket.gethostbyname(name) == address
server = socket.create_server((address, 9000))
server.settimeout(60)
print("ready", flush=True)
assert server.accept()[1][0] == socket.gethostbyname(other)
"""
CALL = "import socket, sys; socket.create_connection((sys.argv[1], 9000), 60)"


@pytest.fixture(autouse=True)
def tools_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.mark.once
def test_hosts_meet_by_name_and_are_gone_after():
    from measure import network

    if why := network.reason():
        pytest.skip(why)
    with network.hosts(2, 100) as (one, two):
        words = ("jaxlm-host0", "jaxlm-host1", network.address(0))
        server = subprocess.Popen(
            [*one, sys.executable, "-c", MEET, *words], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        subprocess.run([*two, sys.executable, "-c", CALL, "jaxlm-host0"], check=True)
        assert server.wait() == 0
        server.stdout.close()
        shaped = subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True).stdout
        assert shaped.count("rate 100Mbit") == 2
    left = subprocess.run(["ip", "link"], capture_output=True, text=True).stdout
    left += subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout
    assert "jaxlm" not in left


@pytest.mark.once
def test_the_gradient_crosses_once_each_way():
    """Data parallelism over n hosts: 2 (n - 1) / n of 4 bytes for each parameter."""
    from measure.cases import CASES
    from measure.scaling import planned

    words = [*CASES["weak-scaling"].shape["words"], "mesh.data=4", "batch=8"]
    parameters = 2 * (4 * 512**2 + 3 * 512 * 1536) + 1024 * 512 + 5 * 512
    assert planned(4, 8, words) == pytest.approx(1.5 * 4 * parameters / 1e6, rel=1e-6)
