"""The verbs of `jaxlm`, and the way out: one line and a documented exit code.

What needs jax, numpy or pydantic is imported inside the verb that needs it, so that --help answers
at once.
"""

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from jaxlm import __version__
from jaxlm.cli.adapter import app as adapter_app
from jaxlm.cli.convert import app as convert_app
from jaxlm.cli.embed import embed
from jaxlm.cli.fetch import fetch
from jaxlm.cli.generate import generate
from jaxlm.cli.inspect import inspect
from jaxlm.cli.launch import app as launch_app
from jaxlm.cli.plan import plan
from jaxlm.cli.predict import predict
from jaxlm.cli.setup import EXIT_CODES, Arguments, Platform, Run, platform_of, split, start
from jaxlm.cli.tokenize import tokenize
from jaxlm.core import errors
from jaxlm.core.errors import JaxlmError

if TYPE_CHECKING:
    from jaxlm.config.schema import RunConfig

app = typer.Typer(
    name="jaxlm",
    help="Pretrain and fine-tune language models with JAX.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Show and compare configurations.", no_args_is_help=True)
checkpoint_app = typer.Typer(help="Look into a run's checkpoints.", no_args_is_help=True)
data_app = typer.Typer(help="Tokenize data, and look at it.", no_args_is_help=True)
app.add_typer(config_app, name="config", epilog=EXIT_CODES)
app.add_typer(checkpoint_app, name="checkpoint", epilog=EXIT_CODES)
app.add_typer(data_app, name="data", epilog=EXIT_CODES)
app.add_typer(convert_app, name="convert", epilog=EXIT_CODES)
app.add_typer(adapter_app, name="adapter", epilog=EXIT_CODES)
app.add_typer(launch_app, name="launch", epilog=EXIT_CODES)
app.command(epilog=EXIT_CODES)(inspect)
app.command(epilog=EXIT_CODES)(fetch)
app.command(epilog=EXIT_CODES)(generate)
app.command(epilog=EXIT_CODES)(embed)
app.command(epilog=EXIT_CODES)(predict)
data_app.command(epilog=EXIT_CODES)(tokenize)
app.command(epilog=EXIT_CODES)(plan)


def _version(asked: bool) -> None:
    if asked:
        print(f"jaxlm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options that belong to no verb."""


@app.command(epilog=EXIT_CODES)
def train(
    arguments: Arguments = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="On resume, a key or section that may differ from the run's own, "
            "besides steps, log, checkpoint and evaluate. May be given again.",
        ),
    ] = None,
    coordinator: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Of process 0, in a job of several.")
    ] = "",
    processes: Annotated[str, typer.Option(metavar="N", help="How many the job has.")] = "",
    process: Annotated[str, typer.Option(metavar="I", help="Which this one is, from 0.")] = "",
    join_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="For all processes to come.")
    ] = 300.0,
) -> int:
    """Train a model. Run the same line again to continue where it stopped."""
    from jaxlm.config.load import load
    from jaxlm.core.job import Told
    from jaxlm.observe import goodput

    began = goodput.began()
    file, overrides = split(arguments)
    config = load(file, overrides)
    moved = (
        file and os.path.isdir(file) and os.path.realpath(file) != os.path.realpath(config.folder)
    )
    if moved and not any(word.startswith("run_dir=") for word in overrides):
        config = config.model_copy(update={"run_dir": file})  # the folder that was named
    signal.signal(signal.SIGTERM, _leave)  # the loop has its own; imports take seconds until then
    from jaxlm.training import loop

    return loop.train(
        config,
        allow_change=tuple(allow_change or ()),
        told=Told(coordinator, processes, process),
        timeout=join_timeout,
        began=began,
    )


@app.command("eval", epilog=EXIT_CODES)
def evaluate(
    run: Run,
    batches: Annotated[
        int | None,
        typer.Option(min=1, help="Most batches to score; all by default."),
    ] = None,
    platform: Platform = None,
) -> None:
    """Score a run's newest checkpoint on its validation data."""
    start(platform or platform_of(run))
    from jaxlm.training import confusion
    from jaxlm.training.evaluate import evaluate_run

    found = evaluate_run(run, batches)
    for name, value in found.items():
        if isinstance(value, int | float):
            print(f"{name} {value:.6g}")
    for line in confusion.lines(found):
        print(line)


@app.command(epilog=EXIT_CODES)
def doctor() -> int:
    """Check versions, devices, drivers, disk and caches, and say what to do about each finding."""
    from jaxlm.observe.doctor import doctor

    return doctor()


@app.command(epilog=EXIT_CODES)
def report(run: Run) -> None:
    """Write one self-contained HTML page with the curves of a run."""
    from jaxlm.observe import report

    print(report.write(run))


@config_app.command("show", epilog=EXIT_CODES)
def config_show(arguments: Arguments = None) -> None:
    """Print the whole configuration of a run as YAML, itself a valid file."""
    from jaxlm.config.load import dump, load

    print(dump(load(*split(arguments))), end="")


@config_app.command("schema", epilog=EXIT_CODES)
def config_schema() -> None:
    """Print the JSON schema of a configuration, for completion in an editor."""
    import json

    from jaxlm.config.load import schema

    print(json.dumps(schema(), indent=2))


@config_app.command("diff", epilog=EXIT_CODES)
def config_diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="A file, a run or a preset.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="A file, a run or a preset.")],
) -> None:
    """Print the keys in which two configurations differ."""
    from jaxlm.config.explain import shown
    from jaxlm.config.load import changes, load

    for key, before, after in changes(load(old), load(new)):
        print(f"{key}: {shown(before)} -> {shown(after)}")


@checkpoint_app.command("list", epilog=EXIT_CODES)
def checkpoint_list(run: Run) -> None:
    """Print a line per checkpoint: step, date, size, score and digest."""
    from jaxlm.checkpoint import inspect

    folder = f"{run}/checkpoints"
    if not inspect.steps(folder):
        inspect.manifest(folder)  # raises
    print(inspect.table(folder))


@checkpoint_app.command("digest", epilog=EXIT_CODES)
def checkpoint_digest(run: Run) -> None:
    """Print STEP DIGEST of the newest checkpoint: equal for bit-equal runs on any mesh."""
    from jaxlm.checkpoint import inspect

    step, digest = inspect.digest(f"{run}/checkpoints")
    print(step, digest)


@checkpoint_app.command("verify", epilog=EXIT_CODES)
def checkpoint_verify(
    run: Run,
    step: Annotated[int | None, typer.Option(help="The step; the newest by default.")] = None,
) -> None:
    """Read a checkpoint whole and compare every file and tensor with its digest."""
    start("cpu")
    from jaxlm.checkpoint import inspect

    found = inspect.verify(f"{run}/checkpoints", step)
    for problem in found.problems:
        print(f"step {found.step}: {problem}")
    if found.problems:
        raise errors.CheckpointError(
            f"{run}/checkpoints/{found.step}",
            f"{found.problems[0]}; delete the folder, and the run continues from the one before, "
            "or from the start where there is none",
        )
    print(f"step {found.step}: {found.tensors} tensors, {found.nbytes} bytes, all as saved")


@data_app.command("inspect", epilog=EXIT_CODES)
def data_inspect(
    arguments: Arguments = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many to print.")] = 3,
) -> None:
    """Print rows of the training data as the model will see them, trained tokens colored."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from jaxlm.config.load import load

    config = load(*split(arguments))
    start("cpu")
    from jaxlm.config.objectives import Labels
    from jaxlm.data import inspect, labels_shown
    from jaxlm.observe.progress import Progress
    from jaxlm.training import reading
    from jaxlm.training.assemble import get_tokenizer
    from jaxlm.training.labels import counted
    from jaxlm.training.state import inherit

    config = counted(inherit(config))

    with TemporaryDirectory() as scratch:
        folder = Path(config.folder if _is_of(config) else scratch, "tokenizer")
        with Progress(scratch, name=config.name, steps=0, primary=True, stream=sys.stderr) as voice:
            tokenizer = get_tokenizer(config, folder, voice)
            data, _ = reading.read(config, tokenizer, voice.say)
    chosen, color = config.objective, sys.stdout.isatty()
    if isinstance(chosen, Labels):
        print(labels_shown.inspect(data, tokenizer, chosen, rows, color))
    else:
        print(inspect.inspect(data, tokenizer, rows, color))


def _is_of(config: "RunConfig") -> bool:
    """Whether the run in a configuration's folder has the tokenizer that it asks for."""
    from jaxlm.config.load import changes, load

    saved = os.path.join(config.folder, "config.yaml")
    if not os.path.isfile(saved) or not os.path.isdir(os.path.join(config.folder, "tokenizer")):
        return False
    other = {key.partition(".")[0] for key, _, _ in changes(load(saved), config)}
    return not other & {"tokenizer", "objective", "init", "data"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGINT, _leave)
    own = given[: given.index("--")] if "--" in given else given
    rest = given[len(own) :]  # where a launcher is told what to run, with an option --debug too
    code = run([word for word in own if word != "--debug"] + rest, debug="--debug" in given)
    if code and (distributed := _job()):
        distributed.exit_now(code)  # the orderly way out would wait for the other processes
    sys.exit(code)


def _job() -> ModuleType | None:
    """The module that knows the other processes, where there are any."""
    distributed = sys.modules.get("jaxlm.core.distributed")
    return distributed if distributed is not None and distributed.joined() else None


def _leave(number: int, frame: FrameType | None) -> None:
    """Leave at once: an exception would be lost in whatever is being imported or compiled."""
    name, code = signal.Signals(number).name, errors.INTERRUPTED
    if number == signal.SIGTERM:
        code = errors.STOPPED
    os.write(2, f"jaxlm: error: {name}: stopped; run the same command again\n".encode())
    os._exit(code)


def run(arguments: list[str], *, debug: bool = False) -> int:
    """Run one command line, print what went wrong as one line, and return the exit code."""
    terminal = sys.stdout
    try:
        code = app(args=arguments, prog_name="jaxlm", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else errors.DONE
    except (BrokenPipeError, SystemExit) as left:
        # typer replaces stdout and exits when the reader of a pipe has gone
        if isinstance(left, SystemExit) and sys.stdout is terminal:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), terminal.fileno())
        return errors.DONE  # the reader has seen enough, as in `jaxlm config show | head`
    except (KeyboardInterrupt, typer.Abort):
        print("jaxlm: error: interrupted", file=sys.stderr)
        return errors.INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        found = _known(error)
        if distributed := _job():
            distributed.fail(found)
        if found.what:  # without a verb, the help has been shown instead
            print(f"jaxlm: error: {' '.join(str(found).split())}", file=sys.stderr)
        return found.code


def _known(error: Exception) -> JaxlmError:
    """The same error with its exit code, as far as it can be told from outside."""
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, JaxlmError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        advice = "use a smaller batch, more microbatches, or model.remat=full"
        return errors.OutOfMemoryError("memory", f"{text or 'the host has no more'}; {advice}")
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
    if isinstance(error, OSError) and error.errno in full:
        where = str(error.filename or "disk")
        advice = "it must be writable and have room; or write elsewhere with run_dir="
        return errors.StorageError(where, f"{error.strerror}; {advice}")
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR):
        where = str(error.filename or "path")[:200]
        return errors.ConfigError(where, f"{error.strerror}; name another path")
    if "Unable to initialize backend" in text:
        return errors.ConfigError("platform", f"{text}; run `jaxlm doctor`, or use platform=cpu")
    kind = type(error).__name__
    return JaxlmError("internal", f"{kind}: {text}; run again with --debug for the traceback")


def _usage(error: typer.TyperException) -> JaxlmError:
    """A wrong verb, option or argument, with what was probably meant."""
    text = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    where = context.command_path.partition(" ")[2] if context else ""
    option = getattr(error, "option_name", "").lstrip("-").replace("-", "_")
    if "No such option" in text:
        from jaxlm.config.keys import documented

        text = text.replace(" (Possible options: ", "; did you mean ").replace(")", "?")
        if option in {key.partition(".")[0] for key in documented()} or "." in option:
            text = f"no such option --{option}; keys have no dashes: write {option}=VALUE"
    text = re.sub(r"\. Did you mean '(.+)'\?", r"; did you mean \1?", text)
    return errors.ConfigError(where or "command line", text[:1].lower() + text[1:])
