"""Fetches a checkpoint from the Hugging Face hub. The only module here that opens a network connection."""

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
        ImportRefused: No such model, no permission, or no network.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_WANTED))
    except Exception as error:  # the client raises its own, its transport's and ValueError
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ImportRefused(f"{hub_id} cannot be fetched from the hub: {reason}") from error
