"""Merges a PEFT adapter (LoRA and its kin) onto its base model, so that the store keeps one whole checkpoint.

A folder that PEFT wrote holds `adapter_config.json`, the adapter's weights, and the name of the base. Needs
`peft`, of the extra `train`. Read next: `model_store/importer.py`.
"""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_store.checkpoint import read_checkpoint
from model_store.entry import ModelEntry, read_folder
from model_store.errors import ImportRefused, ModelNotFound, StoreError, UnreadableFile
from model_store.files import read_json
from model_store.manifest import Draft, write_manifest
from model_store.store import Store, resolve
from model_store.tokenizer import Tokenizer, copy_tokenizer
from model_store.tokenizer_files import tokenizer_files

ADAPTER = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Say whether a folder holds a PEFT adapter."""
    return (folder / ADAPTER).is_file()


@contextmanager
def merged(folder: Path, store: Store, base: str = "") -> Iterator[Path]:
    """Give a folder with the adapter merged onto its base; it is deleted afterwards.

    Args:
        folder: What PEFT wrote.
        store: Where the base may lie.
        base: A folder, a model of the store or `hf:<hub id>`; "" for the one that the adapter names.

    Raises:
        ImportRefused: `peft` is missing, the base is not found, or such an adapter cannot be merged; says
            what to do.
        StoreError: The base is no GPT-2.
    """
    config = _config(folder)
    entry = _base(folder, config, store, base)
    with tempfile.TemporaryDirectory(prefix="textgen-merge-") as name:
        target = Path(name) / folder.resolve().name
        target.mkdir()
        _merge(folder, entry, config, target)
        made = f"base model: {entry.label}, an adapter ({config['peft_type']}) merged onto it"
        draft = Draft(tasks=entry.tasks, data=(*entry.manifest.data, made))
        write_manifest(target, draft.to_dict())
        yield target


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / ADAPTER)
    except UnreadableFile as error:
        raise ImportRefused(str(error)) from error
    if (task := config.get("task_type")) not in (None, "CAUSAL_LM"):
        raise ImportRefused(f"{folder}: the adapter is for {task}; only CAUSAL_LM can be served")
    return {**config, "peft_type": config.get("peft_type") or "LORA"}


def _base(folder: Path, config: dict[str, Any], store: Store, base: str) -> ModelEntry:
    """Find the base: as a folder beside the adapter or where it was, in the store, or on the hub."""
    name = base or str(config.get("base_model_name_or_path") or "")
    way = "name it with --base: a folder (with a /), a model of the store, or hf:OWNER/NAME"
    if not name:
        raise ImportRefused(f"{folder}: the adapter does not say which model it belongs to; {way}")
    candidates = [Path(name).expanduser(), folder / name, folder.parent / name]
    try:
        for candidate in candidates:
            if (candidate / "config.json").is_file():
                return read_folder(candidate)
        try:
            return resolve(name, store.root)
        except ModelNotFound:
            return resolve(f"hf:{name.removeprefix('hf:')}", store.root)
    except StoreError as error:
        raise ImportRefused(f"{folder}: its base {name} is not to be had ({error}); {way}") from error


def _merge(folder: Path, entry: ModelEntry, config: dict[str, Any], target: Path) -> None:
    try:
        from peft import PeftModel
    except ModuleNotFoundError as error:
        raise ImportRefused(
            f"{folder} is a PEFT adapter, and peft is not installed: pip install 'textgen-service[train]'; "
            "or merge it where it was trained, with merge_and_unload() and save_pretrained(…)"
        ) from error
    from model_store.weights import load_gpt2

    checkpoint = read_checkpoint(entry.path)
    model = load_gpt2(checkpoint)
    own = folder if list(tokenizer_files(folder)) else entry.path
    num_tokens = Tokenizer.load(own).vocab_size
    if num_tokens > checkpoint.architecture.vocab_size:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of a transposed layer, which it sets right itself
        try:
            model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        except (AttributeError, NotImplementedError) as error:
            raise ImportRefused(
                f"{folder}: an adapter of kind {config['peft_type']} cannot be merged into the weights; "
                "LoRA and its kin can"
            ) from error
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise ImportRefused(
                f"{folder} does not fit {entry.label}: {str(error).splitlines()[0]}"
            ) from error
    model.save_pretrained(target)
    if (entry.path / "generation_config.json").is_file():
        shutil.copyfile(entry.path / "generation_config.json", target / "generation_config.json")
    copy_tokenizer(own, target, model.config.vocab_size)
