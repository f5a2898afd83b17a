"""A JobSet for Kubernetes (jobset.sigs.k8s.io), with one pod, and process, for each node."""

import hashlib
import math
import subprocess
from typing import NamedTuple

import yaml

from jaxlm.core.errors import ClusterError, ConfigError
from jaxlm.core.job import COORDINATOR, PORT, PROCESS, PROCESSES
from jaxlm.core.platform import check_platform
from jaxlm.core.sizes import cubes
from jaxlm.launch import task
from jaxlm.launch.task import Task

CHIPS = 4
"""TPU chips of a node of GKE, in slices of several nodes."""
PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
ACCELERATORS = {
    "tpu-v4-podslice": (*SMALL, *cubes(4, (12, 16, 16))),
    "tpu-v5-lite-podslice": PLANES,
    "tpu-v5p-slice": (*SMALL, *cubes(4, (16, 16, 24))),
    "tpu-v6e-slice": PLANES,
}
"""TPUs as GKE names them, and their topologies (cloud.google.com/kubernetes-engine/docs/concepts/
plan-tpus)."""
LONGEST = 63 - len("-worker-00-0000-abcde")
"""Of a JobSet's name: its pods add theirs, and are labels too."""
WORKER = "worker"
ADVICE = "install kubectl (kubernetes.io/docs/tasks/tools) and the JobSet controller"


class Layout(NamedTuple):
    """What the cluster is asked for; what is None is left out."""

    nodes: int
    gpus_per_node: int
    accelerator: str | None
    """A TPU as GKE names it, such as tpu-v5p-slice, instead of nodes with GPUs."""
    topology: str | None
    """Of its chips, such as 4x4x4."""
    slices: int
    image: str
    namespace: str | None
    claim: str | None
    """A PersistentVolumeClaim that all pods may write to: the run's folder lies there."""
    queue: str | None
    """Kueue's LocalQueue."""


def write(run: Task, layout: Layout) -> str:
    """The YAML. Raises ConfigError for what Kubernetes would refuse, or could not work."""
    name = task.label(run.config.name, LONGEST)
    nodes, chips = _nodes(layout)
    check_platform(
        run.config.platform, "tpu" if chips else "gpu" if layout.gpus_per_node else "cpu"
    )
    if chips:
        count, where = layout.slices * nodes * chips, "--topology and --slices"
        task.check_devices(run, count, where, layout.slices)
    else:
        count = nodes * max(layout.gpus_per_node, 1)
        task.check_devices(run, count, "--nodes and --gpus-per-node")
    task.check_word("--image", layout.image, task.IMAGE, "REGISTRY/jaxlm:1")
    for option in ("namespace", "claim", "queue"):
        dot = "" if option == "namespace" else "."
        like, value = rf"[a-z0-9]([-a-z0-9{dot}]*[a-z0-9])?", getattr(layout, option)
        task.check_word(f"--{option}", value, like, "shared")
    if layout.claim is None:
        what = "a run's folder must outlive its pods, and all must see it; name the"
        raise ConfigError("--claim", f"{what} PersistentVolumeClaim that holds it")
    task.check_shared(run.config, task.WORKSPACE)
    sent, config = run.sent()
    names = {"coordinator": COORDINATOR, "processes": PROCESSES, "process": PROCESS}
    return task.render(
        "jobset.yaml",
        made_by=run.made_by,
        name=name,
        layout=layout,
        nodes=nodes,
        chips=chips,
        gpus=0 if chips else layout.gpus_per_node,
        host=f"{name}-{WORKER}-0-0.{name}",
        worker=WORKER,
        port=PORT,
        names=names,
        words=[word.replace("$", "$$") for word in sent.words],  # Kubernetes expands $(NAME)
        config=config,
        # a live run's is not replaced by another
        config_name=f"{name}-{hashlib.sha256(config.encode()).hexdigest()[:10]}",
        sent=task.SENT,
        workspace=task.WORKSPACE,
        final=list(task.FINAL),
        saved=task.SAVED,
        restarts=task.RESTARTS,
        grace=task.GRACE,
    )


def submit(text: str) -> int:
    """Give the JobSet to kubectl, in its current context. One of the name that has ended is deleted
    first, since a JobSet cannot be changed; raises ConfigError for one that has not.
    """
    task.require("kubectl", ADVICE)
    *_, jobset = yaml.safe_load_all(text)
    name, namespace = jobset["metadata"]["name"], jobset["metadata"].get("namespace")
    own = [name, *([f"--namespace={namespace}"] if namespace else [])]
    found, _, ended = _state(own).partition("/")
    if found and not ended:
        what = f"a JobSet {name} has not ended; use another name, or end it first with"
        raise ConfigError("name", f"{what}: kubectl delete jobset {' '.join(own)}")
    if found:  # with its jobs, whose names the next one needs
        task.submit(["kubectl", "delete", "jobset", *own, "--cascade=foreground"], "", ADVICE)
    return task.submit(["kubectl", "apply", "-f", "-"], text, ADVICE)


def _state(own: list[str]) -> str:
    """NAME/ of a JobSet that has not ended, NAME/Completed or NAME/Failed, "" of none."""
    shown = "jsonpath={.metadata.name}/{.status.terminalState}"
    command = ["kubectl", "get", "jobset", *own, "--ignore-not-found", "-o", shown]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        what = f"does not say whether JobSet {own[0]} is there (code {done.returncode}, see above)"
        raise ClusterError("kubectl", what)
    return done.stdout.strip()


def _nodes(layout: Layout) -> tuple[int, int]:
    """Nodes of a slice, or of all, and the TPU chips of each; 0 chips without a TPU."""
    if layout.accelerator is None:
        if layout.topology or layout.slices > 1:
            what = "is of a TPU; add --accelerator=tpu-v5p-slice --topology=2x2x4, or leave it out"
            raise ConfigError("--topology" if layout.topology else "--slices", what)
        return layout.nodes, 0
    if layout.nodes > 1:
        what = f"{layout.nodes} is of GPUs; a TPU has the nodes of its --topology, times --slices"
        raise ConfigError("--nodes", f"{what}; leave it out")
    if layout.accelerator not in ACCELERATORS:
        what = f"{layout.accelerator!r} is no TPU of GKE that is known here"
        raise ConfigError("--accelerator", f"{what}; use {', '.join(ACCELERATORS)}")
    sides = [int(side) for side in _sides(layout.accelerator, layout.topology).split("x")]
    return math.ceil(math.prod(sides) / CHIPS), min(math.prod(sides), CHIPS)


def _sides(accelerator: str, topology: str | None) -> str:
    """The topology, which is one of the accelerator's."""
    known = ACCELERATORS[accelerator]
    if topology and topology in known:
        return topology
    few, more = ", ".join(known[:8]), f" and more, up to {known[-1]}" if known[8:] else ""
    what = f"{topology!r} is none" if topology else "says how many chips there are"
    raise ConfigError("--topology", f"{what}; of {accelerator} there are {few}{more}")
