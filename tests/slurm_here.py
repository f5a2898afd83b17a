"""A SLURM of two nodes on this machine: munge, the controller, and two daemons, each under a host
name of its own. Nodes have two GPUs that are none, so that both layouts can be asked for.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "hostname")

CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName=DEFAULT CPUs=8 RealMemory=16384 Gres=gpu:2 State=UNKNOWN
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName={host}z NodeHostname={host}z NodeAddr=127.0.0.1 Port={ports[2]}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=debug Nodes=ALL Default=YES State=UP
PartitionName=patient Nodes=ALL GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


def missing() -> str | None:
    """Why there can be none here."""
    if os.geteuid() != 0:
        return "SLURM's daemons want root"
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"no {absent[0]}; tests/run.sh installs slurm-wlm and munge where it can"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "no host names of one's own can be made here"
    try:
        socket.gethostbyname(_host())
    except OSError:
        return f"this machine's name {_host()} does not resolve"
    return None


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """While it is entered, sbatch, squeue and the others are of this cluster."""
    host, ports = _host(), _free(3)
    for name in ("munge", "state", f"spool.{host}", f"spool.{host}z"):
        (folder / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(CONF.format(host=host, ports=ports, folder=folder))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    (folder / "munge/key").write_bytes(os.urandom(1024))
    (folder / "munge/key").chmod(0o400)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munge = [f"--{name}={folder}/munge/{name.split('-')[0]}" for name in MUNGE]
    hosts = folder / "hosts"
    hosts.write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {host}z\n")
    begin = f"hostname {host}z; mount --bind {hosts} /etc/hosts; exec slurmd -D -N {host}z"
    other = ["unshare", "--uts", "--mount", "sh", "-c", begin]
    with ExitStack() as stack:
        try:
            stack.enter_context(_daemon(folder, "munged", "--foreground", "--force", *munge))
            _until(lambda: (folder / "munge/socket").exists(), folder)
            stack.enter_context(_daemon(folder, "slurmctld", "-D", "-c"))
            stack.enter_context(_daemon(folder, "slurmd", "-D", "-N", host))
            stack.enter_context(_daemon(folder, *other))
            _until(lambda: _said("sinfo", "--noheader", "--format=%D %t") == "2 idle", folder)
            yield
            _said("scancel", "--user=root")
            _until(lambda: not _said("squeue", "--noheader"), folder)
        finally:
            if before is None:
                del os.environ["SLURM_CONF"]
            else:
                os.environ["SLURM_CONF"] = before


MUNGE = ("key-file", "socket", "pid-file", "log-file", "seed-file")


@contextmanager
def _daemon(folder: Path, *command: str) -> Iterator[None]:
    with (folder / "said.log").open("a") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(there: Callable[[], bool], folder: Path) -> None:
    for _ in range(600):
        if there():
            return
        time.sleep(0.1)
    said = (folder / "said.log").read_text()
    raise AssertionError(f"SLURM did not come up, or did not end its jobs, in a minute:\n{said}")


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _free(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


_REASON = missing()
needed = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))
"""For tests that run in one."""
