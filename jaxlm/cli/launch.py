"""`jaxlm launch`: a job of several processes, here or on a cluster."""

import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxlm.cli.setup import EXIT_CODES, split
from jaxlm.core.errors import DONE, ConfigError

if TYPE_CHECKING:
    from jaxlm.config.schema import RunConfig
    from jaxlm.launch.task import Task
    from jaxlm.models.spec import ModelSpec

app = typer.Typer(help="Start a job of several processes.", no_args_is_help=True)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- VERB ...", help="What each process runs, as after `jaxlm`."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the file and start nothing.")]
Out = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write the file there and start nothing.")
]
Nodes = Annotated[int, typer.Option(min=1, help="Hosts.")]
Image = Annotated[str, typer.Option(help="A container with jaxlm: see launch/Dockerfile.")]

VERBS = ("train", "doctor")
"""What several processes do together."""
OURS = ("coordinator", "processes", "process")
"""Options of train that a scheduler says."""
_BY_US = "# jaxlm launch "
"""In every launch file: the command that wrote it."""


@app.command("local", epilog=EXIT_CODES, context_settings={"ignore_unknown_options": True})
def local(
    words: Words = None,
    count: Annotated[int, typer.Option("-n", min=1, max=1024, help="Processes.")] = 2,
    cpu_devices: Annotated[
        int | None,
        typer.Option(min=1, help="So many devices each, on the CPU; else the GPUs are shared out."),
    ] = None,
) -> int:
    """Run several processes of one job on this machine; the first failure ends all."""
    from jaxlm.config.load import load
    from jaxlm.core.platform import check_platform
    from jaxlm.launch import local, task

    if not words or words[0] not in VERBS:
        what = f"{words[0]!r} is no verb of several processes" if words else "runs nothing"
        raise ConfigError("launch local", f"{what}; write: jaxlm launch local -n 2 -- train ...")
    if words[0] != "train":
        _options(words)
        return local.run(words, count, cpu_devices)
    file, overrides = _run("launch local", words)
    config = load(file, overrides)
    if cpu_devices is not None:
        here = task.Task(config, tuple(words), file, "", _architecture(config, ""))
        check_platform(config.platform, "cpu")
        task.check_devices(here, count * cpu_devices, "-n and --cpu-devices")
    return local.run(words, count, cpu_devices)


@app.command("slurm", epilog=EXIT_CODES)
def slurm(
    context: typer.Context,
    words: Words = None,
    nodes: Nodes = 1,
    gpus_per_node: Annotated[
        str, typer.Option(metavar="[TYPE:]N", help="Of each node; 0 computes on the CPU.")
    ] = "8",
    one_process_per: Annotated[str, typer.Option(metavar="gpu|node", help="Layout.")] = "gpu",
    time: Annotated[str, typer.Option(help="Until it is requeued, as 12:00:00 or 2-0.")] = "1-0",
    partition: Annotated[str | None, typer.Option(help="Of the cluster.")] = None,
    account: Annotated[str | None, typer.Option(help="Who pays.")] = None,
    container: Annotated[
        str | None,
        typer.Option(help="IMAGE or .sqsh for pyxis; .sif or docker://IMAGE for Apptainer."),
    ] = None,
    container_mounts: Annotated[
        str | None, typer.Option(metavar="A:B,...", help="Besides the folder that this runs in.")
    ] = None,
    sbatch: Annotated[
        list[str] | None, typer.Option(metavar="OPTION", help="Another one: --sbatch=--qos=high.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="With jaxlm, on all nodes; this one, or the container's.")
    ] = None,
    dry_run: DryRun = False,
    out: Out = None,
) -> int:
    """Submit a batch script that saves and requeues itself before its time is up."""
    from jaxlm.launch import slurm

    python = python or ("python" if container else sys.executable)
    mounts, more = container_mounts, tuple(sbatch or ())
    given = nodes, gpus_per_node, one_process_per, time, partition, account, container, mounts
    layout = slurm.Layout(*given, sbatch=more, python=python)
    to = partial(slurm.write, layout=layout), slurm.submit
    return _launch(context, words, *to, dry_run, out, below="")


@app.command("k8s", epilog=EXIT_CODES)
def k8s(
    context: typer.Context,
    image: Image,
    words: Words = None,
    claim: Annotated[
        str | None, typer.Option(help="PersistentVolumeClaim that all pods write to.")
    ] = None,
    nodes: Nodes = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="0 computes on the CPU.")] = 8,
    accelerator: Annotated[
        str | None, typer.Option(help="A TPU of GKE instead, such as tpu-v5p-slice.")
    ] = None,
    topology: Annotated[str | None, typer.Option(help="Of its chips, such as 4x4x4.")] = None,
    slices: Annotated[int, typer.Option(min=1, help="TPU slices.")] = 1,
    namespace: Annotated[str | None, typer.Option(help="Of the cluster.")] = None,
    queue: Annotated[str | None, typer.Option(help="Kueue's LocalQueue.")] = None,
    dry_run: DryRun = False,
    out: Out = None,
) -> int:
    """Apply a JobSet to a Kubernetes cluster."""
    from jaxlm.launch import kubernetes, task

    asked = nodes, gpus_per_node, accelerator, topology, slices, image, namespace, claim, queue
    to = partial(kubernetes.write, layout=kubernetes.Layout(*asked)), kubernetes.submit
    return _launch(context, words, *to, dry_run, out, below=task.WORKSPACE)


@app.command("tpu", epilog=EXIT_CODES)
def tpu(
    context: typer.Context,
    accelerator_type: Annotated[str, typer.Option(help="Such as v5p-256 or v5litepod-16.")],
    zone: Annotated[str, typer.Option(help="Of Google Cloud.")],
    image: Image,
    nfs: Annotated[str, typer.Option(metavar="SERVER:/SHARE", help="Which all VMs mount.")],
    words: Words = None,
    node_count: Annotated[int, typer.Option(min=1, help="Slices.")] = 1,
    project: Annotated[str | None, typer.Option(help="Of Google Cloud.")] = None,
    runtime_version: Annotated[
        str | None, typer.Option(help="Of the VMs' software; by default the type's.")
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="VMs that may be taken away.")] = False,
    dry_run: DryRun = False,
    out: Out = None,
) -> int:
    """Ask for TPU VMs in Google Cloud's queue; they train once they are here."""
    from jaxlm.launch import task, tpu

    asked = accelerator_type, node_count, zone, project, runtime_version, spot, image, nfs
    to = partial(tpu.write, layout=tpu.Layout(*asked)), tpu.submit
    return _launch(context, words, *to, dry_run, out, below=task.WORKSPACE)


@app.command("sky", epilog=EXIT_CODES)
def sky(
    context: typer.Context,
    accelerators: Annotated[str, typer.Option(metavar="NAME:N", help="Of each node.")],
    bucket: Annotated[str, typer.Option(metavar="gs://...", help="Which all nodes mount.")],
    words: Words = None,
    num_nodes: Nodes = 1,
    infra: Annotated[str | None, typer.Option(help="Such as gcp/us-central1; any.")] = None,
    use_spot: Annotated[
        bool, typer.Option("--use-spot", help="Nodes that may be taken away.")
    ] = False,
    image_id: Annotated[
        str | None, typer.Option(metavar="docker:IMAGE", help="Instead of the checkout here.")
    ] = None,
    extra: Annotated[str, typer.Option(metavar="cuda13|cuda12", help="To install.")] = "cuda13",
    dry_run: DryRun = False,
    out: Out = None,
) -> int:
    """Start a managed job of SkyPilot on any cloud."""
    from jaxlm.launch import sky, task

    asked = num_nodes, accelerators, infra, use_spot, bucket, image_id, extra
    to = partial(sky.write, layout=sky.Layout(*asked)), sky.submit
    below = task.WORKSPACE if image_id else ""  # where the checkout is copied, as it is here
    return _launch(context, words, *to, dry_run, out, below=below)


def _launch(
    context: typer.Context,
    words: list[str] | None,
    write: "Callable[[Task], str]",
    submit: Callable[[str], int],
    dry_run: bool,
    out: str | None,
    *,
    below: str,
) -> int:
    """Write the file for what follows `--`, and print it, keep it or submit it. below: of _task."""
    text = write(_task(context, words or [], below))
    if out is not None:
        try:
            if Path(out).exists() and _BY_US not in Path(out).read_text(errors="replace"):
                what = f"{out} is there, and jaxlm launch did not write it; name another file"
                raise ConfigError("--out", what)
            Path(out).write_text(text)
        except OSError as error:
            raise ConfigError("--out", f"{out}: {error.strerror}; name another file") from None
        print(out)
    elif dry_run:
        print(text, end="")
    else:
        return submit(text)
    return DONE


def _task(context: typer.Context, words: list[str], below: str) -> "Task":
    """The run that `train CONFIG key=value ...` is, its configuration read and checked.

    below: the folder in which hosts read relative paths; "" is the one that this runs in.
    """
    from jaxlm.config.load import load, presets
    from jaxlm.launch.task import Task

    where = f"launch {context.info_name}"
    if words[:1] != ["train"]:
        raise ConfigError(where, f"trains; write: jaxlm {where} OPTIONS -- train CONFIG KEY=VALUE")
    line = _line(context, words)
    if odd := next((word for word in line if not word.isprintable()), None):
        what = f"{odd!r} holds a line's end or the like; leave it out"
        raise ConfigError(where, f"{what}, or write it into the configuration")
    file, overrides = _run(where, words)
    config = load(file, overrides)
    own = None if file is None or (file in presets() and not Path(file).exists()) else file
    return Task(config, tuple(words), own, shlex.join(line), _architecture(config, below))


def _architecture(config: "RunConfig", below: str) -> "ModelSpec | None":
    """The model that is trained, as far as what it is made of is on this machine: see Task."""
    from jaxlm.training.state import architecture, inherit

    named = config.init, config.tokenizer.path
    init, path = (name and os.path.join(below, os.path.expanduser(name)) for name in named)
    if init and not os.path.exists(init):
        return None
    here = not path or os.path.exists(path)
    tokenizer = config.tokenizer.model_copy(update={"path": path if here else None})
    changed = config.model_copy(update={"init": init, "tokenizer": tokenizer})
    spec = architecture(inherit(changed))
    return spec if here else spec.model_copy(update={"vocab": config.model.vocab})


def _run(where: str, words: list[str]) -> tuple[str | None, list[str]]:
    """The configuration and the overrides of `train ...`. Raises ConfigError for options of what
    the launcher itself says.
    """
    given = _options(words)
    if ours := next((name for name in OURS if given[name]), None):
        raise ConfigError(where, f"--{ours} is for it to say; leave it out")
    return split(given["arguments"])


def _options(words: list[str]) -> dict[str, Any]:
    """What `jaxlm VERB ...` would make of these words; raises what it would raise."""
    from jaxlm import cli

    verb, *rest = (word for word in words if word != "--debug")
    command: Any = typer.main.get_command(cli.app)
    return command.commands[verb].make_context(f"jaxlm {verb}", rest).params


def _line(context: typer.Context, words: list[str]) -> list[str]:
    """The command as it was given, without what only says where the file goes."""
    line = ["jaxlm", "launch", context.info_name or ""]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        quiet = parameter.name in ("words", "dry_run", "out")
        if quiet or value in (None, [], ()) or value == parameter.get_default(context):
            continue
        option = max(parameter.opts, key=len)
        values = value if isinstance(value, list | tuple) else [value]
        for one in values:
            line += [option] if one is True else [f"{option}={one}"]
    return [*line, "--", *words]
