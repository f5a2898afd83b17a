"""What a launch file runs, read from the configuration and checked before anything is spent."""

import json
import posixpath
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxlm.config.load import dump, flat
from jaxlm.config.schema import RunConfig
from jaxlm.core.errors import (
    CHECKPOINT,
    CLUSTER,
    CONFIG,
    DATA,
    DONE,
    INTERNAL,
    MEMORY,
    NUMERIC,
    STOPPED,
    STORAGE,
    WATCHDOG,
    ClusterError,
    ConfigError,
)
from jaxlm.core.sizes import AXES, check_batch, check_slices
from jaxlm.models.spec import ModelSpec

AGAIN = (CLUSTER, WATCHDOG)
"""Codes of a host that was lost or hung: the same command goes on, up to RESTARTS times."""
SAVED = STOPPED
"""The code of a run that was asked to stop and has saved: it goes on however often that was."""
FINAL = (INTERNAL, CONFIG, DATA, CHECKPOINT, NUMERIC, STORAGE, MEMORY)
"""Codes that the same command would end with again."""
RESTARTS = 10
MOST = 2**20
"""Devices that a mesh is looked for."""
GRACE = 300
"""Seconds for a run that is asked to stop: it finishes its step and saves."""
READ = ("path", "init", "prompts", "json_schema")
"""Last words of the keys that name files."""
WORKSPACE = "/workspace"
"""Where what all hosts share is mounted, and where containers work."""
SENT = "/etc/jaxlm/run.yaml"
"""Where a configuration lies that was sent along, since its file is on this machine."""
IMAGE = r"[\w./:@-]+"
"""An image's name in a registry."""


class Task(NamedTuple):
    """A run to launch."""

    config: RunConfig
    words: tuple[str, ...]
    """After `jaxlm`: train, its configuration, keys and options."""
    file: str | None
    """The configuration's file or run on this machine; None of a preset, which comes with jaxlm."""
    made_by: str
    """The command that writes the launch file."""
    spec: ModelSpec | None
    """The whole model; None where `init` is not on this machine, and without ids where the
    tokenizer alone is not."""

    def command(self, program: Sequence[str]) -> str:
        """The line for a shell that runs it."""
        return shlex.join((*program, *self.words))

    def sent(self, path: str = SENT) -> "tuple[Task, str]":
        """The same for machines that do not see this one's files, and the YAML to send along to
        `path`: "" where none is needed.
        """
        if self.file is None:
            return self, ""
        rest = (word for word in self.words[1:] if word != self.file)
        options = [word for word in rest if word.startswith("--") or "=" not in word]
        return self._replace(words=("train", path, *options)), dump(self.config)


def check_devices(run: Task, count: int, where: str, slices: int = 1) -> None:
    """Raise ConfigError, with what would fit, where mesh, batch or model do not fit the devices.

    where: the options that say how many there are, for the message. slices: of TPUs, in all.
    """
    from jaxlm.core.mesh import Layout, abstract_mesh  # imports jax, which --help needs not
    from jaxlm.models.axes import check_divides

    config = run.config
    if count > MOST:
        raise ConfigError(where, f"ask for {count} devices; use at most {MOST}")
    sizes = {axis: getattr(config.mesh, axis) for axis in AXES}
    try:
        layout = Layout(abstract_mesh(sizes, count))
        check_batch(config.batch, config.microbatches, layout.size("batch"))
        check_slices(config.mesh.slices, count, slices)
        if run.spec and -1 in (sizes["tensor"], sizes["expert"]):
            check_divides(run.spec, layout)
    except ConfigError as error:
        raise ConfigError(where, f"{error}, or other {where}") from None
    if run.spec:
        check_divides(run.spec, layout)  # other numbers of devices would not help


def label(name: str, longest: int) -> str:
    """`name` where it is a DNS label (RFC 1123). Raises ConfigError naming one that is near."""
    if re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= longest:
        return name
    near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:longest].strip("-")
    what = f"{name} is no DNS label of at most {longest} letters, digits and dashes"
    raise ConfigError("name", f"{what}; use name={near or 'run'}")


def check_shared(config: RunConfig, mount: str) -> None:
    """Raise ConfigError where the run's folder, or a file that it reads, is not below `mount`: all
    that the hosts share.
    """
    for key, value in flat(config).items():
        read = value is not None and key.rpartition(".")[2] in READ and "://" not in str(value)
        if read and not _is_below(str(value), mount):
            what = f"{value} is not below {mount}, which is all that the hosts share"
            bucket = ", or into a bucket" if key.startswith("data.") else ""
            raise ConfigError(key, f"{what}; put it there{bucket}")
    if not _is_below(config.folder, mount):
        what = f"{config.folder} is not below {mount}, which is all that the hosts share"
        raise ConfigError("run_dir", f"{what}; use run_dir={mount}/{config.name}")


def _is_below(path: str, mount: str) -> bool:
    """Whether a path, which hosts read from `mount`, stays there, or is that itself."""
    whole = posixpath.normpath(posixpath.join(mount, path))
    return f"{whole}/".startswith(f"{mount}/") and not path.startswith("~")


def check_word(option: str, value: str | None, pattern: str, like: str) -> None:
    """Raise ConfigError for a value that the scheduler would not read, with one that it would."""
    if value is not None and not re.fullmatch(pattern, value, re.ASCII):
        raise ConfigError(option, f"{value!r} is not what it takes; write for example {like}")


def render(template: str, /, **values: Any) -> str:
    """A file of templates/ filled in; what a template names and nobody gave is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jaxlm.launch"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # JSON's strings are YAML's, but for the pairs of escapes that it makes of rare letters
    environment.filters |= {"yaml": partial(json.dumps, ensure_ascii=False), "sh": shlex.quote}
    return environment.get_template(template).render(values)


def submit(command: Sequence[str], text: str, advice: str) -> int:
    """Give a launch file to the tool that owns it, on its standard input.

    Raises ConfigError with `advice` where the tool is absent, ClusterError where it refuses.
    """
    require(command[0], advice)
    done = subprocess.run(command, input=text, text=True)
    if done.returncode:
        raise ClusterError(command[0], f"refused it with code {done.returncode}, as it says above")
    return DONE


def require(tool: str, advice: str) -> None:
    """Raise ConfigError with `advice` where a tool is absent."""
    if shutil.which(tool) is None:
        what = f"is not on this machine; {advice}, or add --dry-run, or --out FILE"
        raise ConfigError(tool, what)
