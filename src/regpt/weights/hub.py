"""From what a person calls a model to a directory on this machine.

A directory is taken as it is. Any other name is a model on the Hugging Face hub, fetched once
into the cache that transformers uses too (huggingface_hub keeps it, and obeys HF_HUB_OFFLINE=1:
then no connection is tried). Only what we read is fetched: a hub repository often holds the same
weights four times over, and the released gpt2 is 0.5 GB as safetensors and 6 GB as a whole.
"""

import os
from pathlib import Path

from regpt.system.errors import UserError
from regpt.weights.tokenizer_files import CHECKS, FOREIGN_FILES

DESCRIPTION = ("config.json", "generation_config.json")
TOKENIZER = (*CHECKS, *FOREIGN_FILES)
"""The second are not ours to read: their presence says that the tokenizer is not GPT-2's."""
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


def locate(name_or_directory: str | Path, *, revision: str | None = None) -> Path:
    """The directory of a model: a local one as it is, or a hub model's, fetched if need be.

    A `Path`, or a string that can only be a path, never reaches for the network. `revision` is a
    branch, tag or commit of a hub model. Raises `UserError` for a directory or model that is not
    there, and where the hub cannot be reached and its cache does not have the model.
    """
    if name_or_directory == "":
        raise UserError("the model's name is empty: give a directory or a hub model's name")
    path = Path(os.path.expanduser(name_or_directory))
    if path.is_dir():
        if revision is not None:
            raise UserError(f"{path} is a directory: revision {revision!r} is for hub models only")
        return path
    if path.exists():
        raise UserError(f"{path} is a file: give the directory it lies in")
    if isinstance(name_or_directory, Path) or _is_path_like(name_or_directory):
        raise UserError(f"no such directory: {path}")
    return _fetch(name_or_directory, revision)


def _is_path_like(name: str) -> bool:
    """Whether a string that is no directory was meant as one: hub names are `name` or `owner/name`.

    `owner/name` counts as a path if there is a folder `owner` here: a mistyped runs/NAME should
    not be looked for on the hub.
    """
    if name.startswith((".", "~")) or "\\" in name:
        return True
    owner, slash, rest = name.replace(os.sep, "/").partition("/")
    return bool(slash) and (not owner or not rest or "/" in rest or Path(owner).is_dir())


def _fetch(name: str, revision: str | None) -> Path:
    """The cached snapshot of a hub model; safetensors preferred, pickles only without them."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        directory = _snapshot(name, revision, (*DESCRIPTION, *TOKENIZER, *SAFETENSORS))
        if not _holds(directory, SAFETENSORS):
            directory = _snapshot(name, revision, (*DESCRIPTION, *PICKLES))
    except Exception as error:
        # huggingface_hub lets its transport's own exceptions through, and has changed transport
        # twice (requests, httpx, httpx2): they have no base class in common but this one
        if refusal := _refusal(name, revision, error):
            raise UserError(refusal) from error
        if cached := _cached(name, revision):
            return cached
        if isinstance(error, LocalEntryNotFoundError):
            reason = "no network, HF_HUB_OFFLINE is set, or the hub is down"
        else:
            first_line = str(error).strip().partition("\n")[0]
            reason = f"{type(error).__name__}: {first_line[:200]}"
        raise UserError(
            f"model {name!r} is neither a directory nor in the hub's cache on this machine, and "
            f"cannot be fetched ({reason}): give the directory of a model, or 'random' where "
            "random weights will do"
        ) from error
    if not _holds(directory, (*SAFETENSORS, *PICKLES)):
        raise UserError(
            f"hub model {name!r} has neither {SAFETENSORS[0]} nor {PICKLES[0]} (or this machine's "
            "cache of it lacks them and there is no network): use another model"
        )
    return directory


def _cached(name: str, revision: str | None) -> Path | None:
    """What the cache has without asking the hub: tokenizer files may be missing, weights not."""
    for patterns in (SAFETENSORS, PICKLES):
        try:
            directory = _snapshot(name, revision, (DESCRIPTION[0], *patterns), offline=True)
        except OSError:
            continue
        if _holds(directory, patterns):
            return directory
    return None


def _holds(directory: Path, patterns: tuple[str, ...]) -> bool:
    return any(any(directory.glob(pattern)) for pattern in patterns)


def _snapshot(
    name: str, revision: str | None, patterns: tuple[str, ...], *, offline: bool = False
) -> Path:
    from huggingface_hub import snapshot_download

    directory = snapshot_download(
        name, revision=revision, allow_patterns=list(patterns), local_files_only=offline
    )
    return Path(directory)


def _refusal(name: str, revision: str | None, error: Exception) -> str | None:
    """What the hub said no to, in one line; None where it said nothing."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    refusals = {
        HFValidationError: f"{name!r} is neither a directory nor a possible name of a hub model",
        RevisionNotFoundError: f"hub model {name!r} has no revision {revision!r}: give a branch, "
        "tag or commit",
        GatedRepoError: f"hub model {name!r} is gated: accept its terms on the hub and log in "
        "there first",
        RepositoryNotFoundError: f"{name!r} is neither a directory nor a model on the hub (or it "
        "is private: log in there first)",
    }
    return next((told for kind, told in refusals.items() if isinstance(error, kind)), None)
