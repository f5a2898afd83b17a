"""A task for SkyPilot (docs.skypilot.co), with one process for each node of any cloud."""

from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from jaxlm.core.errors import ConfigError
from jaxlm.core.platform import check_platform
from jaxlm.launch import task
from jaxlm.launch.task import Task

SENT = "/tmp/jaxlm-run.yaml"
"""Where a configuration lies that was sent along with an image, whose user may have no rights."""
ADVICE = "install SkyPilot into an environment of its own: pip install 'skypilot[CLOUD]'"


class Layout(NamedTuple):
    """What is asked for, named as in SkyPilot's YAML; what is None is left out."""

    num_nodes: int
    accelerators: str
    """NAME:NUMBER of each node."""
    infra: str | None
    """CLOUD, CLOUD/REGION, CLOUD/REGION/ZONE or k8s/CONTEXT; any by default."""
    use_spot: bool
    bucket: str
    """gs://, s3:// or another store's address that all nodes mount: the run's folder lies there."""
    image_id: str | None
    """docker:IMAGE with jaxlm in it; left out, the checkout here is copied and installed."""
    extra: str
    """Of jaxlm, for the driver: cuda13 or cuda12."""


def write(run: Task, layout: Layout) -> str:
    """The YAML. Raises ConfigError for what SkyPilot would refuse, or could not work."""
    task.check_word("--accelerators", layout.accelerators, r"[\w.-]+:[1-9]\d{0,6}", "H100:8")
    if layout.accelerators.lower().startswith("tpu"):
        raise ConfigError("--accelerators", "TPUs are for `jaxlm launch tpu`, or k8s; name a GPU")
    task.check_word("--extra", layout.extra, "cuda13|cuda12", "cuda12")
    task.check_word("--infra", layout.infra, r"[A-Za-z0-9]+(/[\w.*:-]+){0,2}", "gcp/us-central1")
    task.check_word("--bucket", layout.bucket, r"[a-z0-9]+://[\w./-]+", "gs://BUCKET/FOLDER")
    task.check_word("--image-id", layout.image_id, r"docker:[\w./:@-]+", "docker:IMAGE:TAG")
    count = layout.num_nodes * int(layout.accelerators.rpartition(":")[2])
    check_platform(run.config.platform, "gpu")
    task.check_devices(run, count, "--num-nodes and --accelerators")
    if layout.image_id:
        run, config = run.sent(SENT)
    elif run.file and (Path(run.file).is_absolute() or ".." in Path(run.file).parts):
        what = "is not below this folder, which is what SkyPilot copies; name one that is"
        raise ConfigError(run.file, what)
    else:
        config = ""
    folder = PurePosixPath(task.WORKSPACE, run.config.folder)
    task.check_shared(run.config, task.WORKSPACE)
    words = [word for word in run.words if not word.startswith("run_dir=")]
    there = run._replace(words=(*words, f"run_dir={folder}"))
    program = "jaxlm" if layout.image_id else "~/jaxlm-env/bin/jaxlm"
    return task.render(
        "sky.yaml",
        made_by=run.made_by,
        name=run.config.name,
        layout=layout,
        # what a shell expands is not quoted
        command=f"{program} {there.command([])}",
        workspace=task.WORKSPACE,
        config=config,
        sent=SENT,
        saved=task.SAVED,
        restarts=task.RESTARTS,
    )


def submit(text: str) -> int:
    """Start it as a managed job, which is started again elsewhere after a preemption."""
    task.require("sky", ADVICE)
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return task.submit(["sky", "jobs", "launch", "--yes", file.name], "", ADVICE)
