"""A Hugging Face folder or hub id becomes a store entry: checked, converted, and with golden prompts.

Anything that is not a GPT-2 language model with a tokenizer that can be streamed is refused by name, before
the store changes. Read next: `model_store/checkpoint.py` (weights), `model_store/golden.py`.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from model_store import adapters, golden
from model_store.checkpoint import INDEX, SINGLE, read_checkpoint
from model_store.entry import ModelEntry
from model_store.errors import ImportRefused, UnsupportedCheckpoint
from model_store.hub import download, folder_name, is_hub_id, no_folder
from model_store.manifest import MANIFEST, Draft, GoldenPrompt, parse_draft, read_json_manifest
from model_store.pickles import convert_pickles, pickle_files
from model_store.store import Store
from model_store.task import Task
from model_store.task_files import with_generate
from model_store.tokenizer import copy_tokenizer
from model_store.tokenizer_files import tokenizer_files

MakeGolden = Callable[[Path, Mapping[str, Task]], tuple[GoldenPrompt, ...]]

_SHOWN = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "activation_function")
_KEPT = (
    *("config.json", "generation_config.json", "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md"),
    *("loss.csv", "loss.png"),
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a person says about a checkpoint at import; empty: what its own manifest.json says, if any."""

    tasks: Mapping[str, Task] | None = None
    license: str = ""
    data: tuple[str, ...] = ()
    command: str = ""


def import_model(
    store: Store,
    source: str,
    name: str = "",
    version: str = "",
    provenance: Provenance | None = None,
    make_golden: MakeGolden = golden.make_golden,
    base: str = "",
) -> ModelEntry:
    """Add a checkpoint to the store. It is not active afterwards.

    Args:
        store: Where it goes.
        source: A folder, or a hub id (`hf:` before it is allowed).
        name: Of the model; "" for the folder's or the id's last part.
        version: "" for the next number.
        provenance: What is known about it.
        make_golden: Makes the golden prompts.
        base: Of a PEFT adapter, which is merged onto it (`model_store/adapters.py`); "" for the one it names.

    Raises:
        ImportRefused, UnreadableFile, UnsupportedCheckpoint: Says what the checkpoint is or lacks.
        StoreError: The store refuses (name, version), the tokenizer or the manifest is wrong.
    """
    folder = find_source(source)
    if adapters.is_adapter(folder):
        with adapters.merged(folder, store, base) as whole:
            return import_model(store, str(whole), name, version, provenance, make_golden)
    legal = re.sub(r"[^a-z0-9._-]+", "-", folder_name(folder).lower()).strip("-._")[:64] or "model"

    def fill(target: Path) -> Draft:
        try:
            return _fill(folder, target, provenance or Provenance(), make_golden)
        except UnsupportedCheckpoint as error:  # found in what was written, which does not stay
            raise UnsupportedCheckpoint(str(error).replace(str(target), str(folder))) from error

    return store.add(name or legal, fill, version)


def find_source(source: str) -> Path:
    """Give the checkpoint's folder; fetch it when `source` is a hub id.

    Raises:
        ImportRefused: There is no such folder, and it is no hub id or cannot be fetched.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    hub_id = source.removeprefix("hf:")
    if not is_hub_id(hub_id):
        raise ImportRefused(no_folder(source))
    return download(hub_id)


def _fill(source: Path, target: Path, provenance: Provenance, make: MakeGolden) -> Draft:
    """Write the entry's files and say what it is."""
    for name in (*_KEPT, SINGLE, INDEX, *(path.name for path in tokenizer_files(source))):
        _inside(source, name)
    for name in _KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if pickles := pickle_files(source):
        convert_pickles([_inside(source, path.name) for path in pickles], target / SINGLE)
    else:
        for path in read_checkpoint(source).files:
            shutil.copyfile(_inside(source, path.name), target / path.name)
    checkpoint = read_checkpoint(target)
    copy_tokenizer(source, target, checkpoint.architecture.vocab_size)
    draft = parse_draft(read_json_manifest(source)) if os.path.lexists(source / MANIFEST) else Draft()
    tasks = with_generate(provenance.tasks) if provenance.tasks is not None else draft.tasks
    shown = {key: checkpoint.config[key] for key in _SHOWN if key in checkpoint.config}
    return replace(
        draft,
        tasks=tasks,
        architecture={"type": "gpt2", **shown},
        parameters=checkpoint.num_parameters,
        license=provenance.license or draft.license,
        data=provenance.data or draft.data,
        command=draft.command or provenance.command,
        golden=make(target, tasks),
    )


def _inside(folder: Path, name: str) -> Path:
    """Give the path of a checkpoint's file, which need not exist.

    Raises:
        ImportRefused: It is a link that leads out of the checkpoint. (The hub's cache links to the folder
            `blobs` beside its snapshots; that is within.)
    """
    try:
        path, root = (folder / name).resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # a loop; RuntimeError before Python 3.13
        raise ImportRefused(f"{folder / name} leads nowhere: {error}") from error
    blobs = [root.parent.parent / "blobs"] if root.parent.name == "snapshots" else []
    if not any(path.is_relative_to(within) for within in (root, *blobs)):
        raise ImportRefused(f"{folder / name} is a link that leads out of the checkpoint's folder")
    return folder / name
