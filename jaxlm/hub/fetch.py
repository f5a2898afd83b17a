"""Models of the Hugging Face Hub, by name: hf://ORG/NAME or hf://ORG/NAME@REVISION.

huggingface_hub downloads them into its own cache, which HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE
govern as they do everywhere.
"""

import re
from functools import cache
from pathlib import Path

from jaxlm.core.errors import CheckpointError, ConfigError, JaxlmError

SCHEME = "hf://"
READ = ("*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja")
"""Files that are read here; the others are not downloaded."""
UNREAD = ("*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model")
"""Of other formats, in folders of their own."""
_NAME = re.compile(rf"{SCHEME}((?:[\w.-]+/)?[\w.-]+)(?:@([\w./-]+))?")


def is_remote(path: str | Path) -> bool:
    """Whether it names a model of the Hub and no folder."""
    return str(path).startswith(SCHEME)


def local(path: str | Path) -> Path:
    """The folder that holds the model: `path` itself, or where `fetch` has put it."""
    return fetch(str(path)) if is_remote(path) else Path(path)


def pinned(path: str | Path) -> str:
    """A name of the same bytes from everywhere: an absolute path, or hf://ORG/NAME@COMMIT."""
    if not is_remote(path):
        return str(Path(path).resolve())
    return f"{SCHEME}{_parsed(str(path))[0]}@{fetch(str(path)).name}"


def is_newest(name: str, of: str) -> bool:
    """Whether `name` asks for the newest revision of the model that `of` names a commit of."""
    return is_remote(name) and is_remote(of) and _parsed(name) == (_parsed(of)[0], None)


@cache
def fetch(name: str) -> Path:
    """The folder in huggingface_hub's cache with the model, downloaded if need be; the last part
    of its path is the commit. One answer per process, though the branch may move.

    Raises ConfigError for what is no name, CheckpointError for a model or revision that does not
    exist, is not for this user, or is not in the cache while the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    repository, revision = _parsed(name)
    try:
        found = snapshot_download(
            repository, revision=revision, allow_patterns=[*READ], ignore_patterns=[*UNREAD]
        )
    except Exception as error:  # of its HTTP library too, which differs between its versions
        raise _refusal(name, repository, error) from error
    return Path(found)


def _parsed(name: str) -> tuple[str, str | None]:
    """(ORG/NAME, the revision if there is one). Raises ConfigError."""
    if (found := _NAME.fullmatch(name)) is None:
        what = "is no name of a model; write hf://ORG/NAME or hf://ORG/NAME@REVISION"
        raise ConfigError(name, what)
    return found[1], found[2]


def _refusal(name: str, repository: str, error: Exception) -> JaxlmError:
    """What went wrong, and what to do about it."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HFValidationError):
        what = " ".join(str(error).split())
        return ConfigError(name, f"is no name of a model: {what}")
    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{repository}"
        what = f"is gated: accept its terms on {page}, then set HF_TOKEN or run `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        what = "has no such revision; name a branch, a tag or a commit that it has"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = "is not on the Hub, or is private; check the name, or set HF_TOKEN"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub is not reached"
        what = f"is not whole in {constants.HF_HUB_CACHE}, and {offline}; "
        what += f"run `jaxlm fetch {name}` where there is a network, with the same HF_HOME"
    else:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        what = f"cannot be downloaded: {reason}"
    return CheckpointError(name, what)
