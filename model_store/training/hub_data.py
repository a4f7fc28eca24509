"""Data sets of the Hugging Face hub, and those that `datasets` saved to disk, read row by row.

A data set is written `hf:OWNER/NAME`, with a configuration `hf:OWNER/NAME/CONFIG`, and with the split behind
a colon: `hf:OWNER/NAME:train`. Needs the extra `data`. Plain files are read in `tables.py`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model_store.training.errors import InvalidData, MissingExtra

_ID = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:/([\w.-]+))?(?::([\w.-]+))?")
_SAVED = "dataset_info.json"
_SAVED_SPLITS = "dataset_dict.json"


def is_hub_data(path: Path) -> bool:
    """Say whether a path names a data set of the hub."""
    return str(path).startswith("hf:")


def is_saved(path: Path) -> bool:
    """Say whether a folder is what `Dataset.save_to_disk` wrote."""
    return (path / _SAVED).is_file() and (path / "state.json").is_file()


def saved_splits(path: Path) -> list[str]:
    """The splits of a folder that `DatasetDict.save_to_disk` wrote; none for any other."""
    if not (path / _SAVED_SPLITS).is_file():
        return []
    return sorted(folder.name for folder in path.iterdir() if is_saved(folder))


def saved_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number, row) of a saved data set.

    Raises:
        InvalidData: It cannot be read.
        MissingExtra: `datasets` is not installed.
    """
    datasets = _datasets()
    try:
        rows = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise InvalidData(path, f"cannot be read: {error}") from error
    yield from _rows(rows)


def hub_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number, row) of one split of the hub's data set, as it comes over the network.

    Raises:
        InvalidData: The name is wrong, the split is missing from it, or the hub does not give it.
        MissingExtra: `datasets` is not installed.
    """
    matched = _ID.fullmatch(str(path))
    if matched is None:
        raise InvalidData(path, "must be written hf:OWNER/NAME:SPLIT, or hf:OWNER/NAME/CONFIG:SPLIT")
    name, config, split = matched.groups()
    datasets = _datasets()
    try:
        if split is None:
            splits = ", ".join(datasets.get_dataset_split_names(name, config))
            raise InvalidData(path, f"has the splits {splits}; name one: {path}:SPLIT")
        rows = datasets.load_dataset(name, config, split=split, streaming=True)
        yield from _rows(rows)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidData(path, f"cannot be fetched: {str(error).splitlines()[0]}") from error


def _rows(dataset: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    named = {key: kind for key, kind in (dataset.features or {}).items() if hasattr(kind, "int2str")}
    for number, record in enumerate(dataset, start=1):
        names = {
            key: kind.int2str(record[key])
            for key, kind in named.items()
            if isinstance(record[key], int) and record[key] >= 0
        }
        yield number, {**record, **names}


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra("datasets", "data") from error
    datasets.disable_progress_bars()
    return datasets
