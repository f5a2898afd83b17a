"""What several verbs have: exit codes in their help, options, where jax computes, a model."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxlm.core.errors import ConfigError

if TYPE_CHECKING:
    from jaxlm.inference import model

EXIT_CODES = (
    "Exit codes: 0 done, or nothing left to do; 1 internal error; 2 configuration or command line; "
    "3 data; 4 checkpoint, weights, owned run or failed verification; 5 numeric; 6 cluster; "
    "7 storage; 8 out of memory; 75 stopped by a signal and saved, run again to continue; "
    "124 watchdog; 130 interrupted twice. --debug anywhere on the line shows the traceback."
)

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG | KEY=VALUE",
        help="A YAML file, a run's folder or a preset's name; then keys that change it, "
        "for example optimizer.learning_rate=1e-4.",
        show_default=False,
    ),
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run, an import or a Hugging Face folder.")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, for example runs/run.")]
Out = Annotated[str, typer.Argument(metavar="OUT", help="The folder to make.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; the weights' own by default.")
]
Platform = Annotated[
    str | None,
    typer.Option(help="auto, cpu, gpu or tpu; the run's own by default.", show_default=False),
]
Overlong = Annotated[
    str, typer.Option(help="Of texts longer than the model reads: error, truncate-right or -left.")
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR[:WEIGHT]",
        help="A LoRA adapter, as PEFT writes it; of several, each with a weight, the sum.",
    ),
]
Force = Annotated[bool, typer.Option(help="Take an adapter of another base too.")]
ShardSize = Annotated[str, typer.Option(help="Largest file of weights.")]


def split(arguments: list[str] | None) -> tuple[str | None, list[str]]:
    """The configuration and the overrides on a command line."""
    given = arguments or []
    file = given[0] if given and "=" not in given[0] else None
    overrides = given[1:] if file else given
    for word in overrides:
        if "=" not in word:
            raise ConfigError(
                "command line", f"{word!r} is not KEY=VALUE; one CONFIG comes first, then keys"
            )
    return file, overrides


def figures(found: dict[str, Any]) -> None:
    """Print names and values in two columns."""
    for name, value in found.items():
        print(f"{name:<28}{value:.3g}" if isinstance(value, float) else f"{name:<28}{value}")


def platform_of(run: str) -> str:
    """Where a run was trained; auto for what is no run, which whoever loads it will say."""
    from jaxlm.config.load import load

    config = os.path.join(run, "config.yaml")
    return load(config).platform if os.path.isfile(config) else "auto"


def start(platform: str) -> None:
    """Choose where jax computes and where it keeps compiled programs, before it is imported."""
    from jaxlm.core.platform import choose_platform, use_compile_cache

    choose_platform(platform)
    use_compile_cache()


def load(path: str, adapter: list[str] | None, *, force: bool = False) -> "model.Model":
    """The model in a folder, with the sum of what --adapter named."""
    from jaxlm.inference import model

    summands = weights(adapter or [])
    loaded = model.load(path)
    return loaded.with_adapters(summands, force=force) if summands else loaded


def weights(words: list[str]) -> dict[str, float]:
    """What `--adapter DIR`, or `--adapter DIR:WEIGHT` again and again, names. Raises ConfigError
    for several of which one has no weight.
    """
    found: dict[str, float] = {}
    for word in words:
        path, _, weight = word.rpartition(":")
        try:
            number = float(weight) if path and not os.path.isdir(word) else None
        except ValueError:
            number = None
        if number is None and len(words) > 1:
            what = f"{word}: several are a sum; say how much of each, as in {word}:0.5"
            raise ConfigError("--adapter", what)
        name = word if number is None else path
        if name in found:
            raise ConfigError("--adapter", f"{name} is there twice; name it once")
        found[name] = 1.0 if number is None else number
    return found
