"""Fetches a checkpoint from the Hugging Face hub. The only module here that opens a network connection."""

import re
from pathlib import Path

from model_store.errors import ImportRefused

_WANTED = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "README.md", "LICENSE*"]


def download(hub_id: str) -> Path:
    """Fetch a checkpoint, or find it in the hub's own cache.

    Args:
        hub_id: `owner/name` or `name`, with `@revision` after it if wanted.

    Returns:
        A folder of the cache; its files may be links.

    Raises:
        ImportRefused: No such model, no permission, or no network; says what to do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_WANTED))
    except (RepositoryNotFoundError, GatedRepoError) as error:
        advice = "check the name; for a private or gated model set HF_TOKEN"
        raise ImportRefused(f"{hub_id} cannot be fetched from the hub: {_line(error)}; {advice}") from error
    except Exception as error:  # the client raises its own, its transport's and ValueError
        advice = f"or fetch it elsewhere (hf download {name} --local-dir FOLDER) and give the folder"
        raise ImportRefused(f"{hub_id} cannot be fetched from the hub: {_line(error)}; {advice}") from error


def is_hub_id(text: str) -> bool:
    """Say whether a text can be a model of the hub: `name` or `owner/name`, and maybe `@revision`."""
    return bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w.-]+)?", text)) and text[0] not in ".~/"


def folder_name(folder: Path) -> str:
    """Give the name of the model in a folder.

    In the hub's cache that is not the commit's hash but the repository's name, in lower case as in the store.
    """
    path = folder.resolve()
    repository = path.parent.parent.name
    is_cached = path.parent.name == "snapshots" and repository.startswith("models--")
    return repository.rpartition("--")[2].lower() if is_cached else path.name


def no_folder(source: str) -> str:
    """What to say of a model that was given as a path where there is no folder."""
    path = Path(source).expanduser()
    if path.is_file():
        return f"{source} is a file; name the folder that holds the model, {path.parent}"
    return f"there is no folder {source}"


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
