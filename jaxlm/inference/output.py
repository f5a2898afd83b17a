"""The file that a verb writes."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxlm.core.errors import ConfigError, StorageError


def check_output(path: str, source: str, kinds: Collection[str]) -> None:
    """Raise ConfigError for a file of a suffix that is not written, in a folder that is not there,
    or that is the source.
    """
    if Path(path).suffix not in kinds:
        raise ConfigError("--output", f"{path} is none of {', '.join(kinds)}; name one")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError("--output", f"{path} is in no folder that exists; make it first")
    if Path(path).is_dir():
        raise ConfigError("--output", f"{path} is a folder; name a file")
    if Path(path).is_file() and (Path(path).absolute().parent / "record.json").is_file():
        raise ConfigError("--output", f"{path} is a file of a run; name another file")
    if Path(path).resolve() == Path(source).resolve():
        raise ConfigError("--output", f"{path} is the input; name another file")


@contextmanager
def whole(path: str) -> Iterator[Path]:
    """A place beside `path` to write: what lies there is at `path` once the block has ended, and
    nowhere when it failed.
    """
    last = Path(path)
    part = last.with_name(f".{last.name}.part")
    try:
        yield part
        part.replace(last)
    except OSError as error:
        what = f"{error.strerror}; the folder must be writable and have room"
        raise StorageError(path, what) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
