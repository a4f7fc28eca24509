"""The exceptions of the training side, all of them children of `StoreError`.

    StoreError
    ├── MissingExtra         a package of the extras `train` and `data` is not installed
    ├── InvalidData          a data file is wrong; names the file and the line
    ├── InvalidOption        an option of a training command is not legal, or does not fit the others
    ├── EncodesToNothing     the tokenizer has no token for a text
    ├── Diverged             a run's loss is no number any more
    ├── DiskFull             there is too little room for what is to be written
    └── EvaluationFailed     a service that was to be measured did not answer

Apart from `model_store/errors.py` because serving needs none of them.
"""

from pathlib import Path

from model_store.errors import StoreError


class MissingExtra(StoreError):
    """A package that only training, or reading its data, needs is not installed.

    Args:
        package: The name of the package on PyPI.
        extra: The extra that brings it: `train` or `data`.
    """

    def __init__(self, package: str, extra: str = "train") -> None:
        super().__init__(f"{package} is not installed; run: pip install 'textgen-service[{extra}]'")


class InvalidData(StoreError):
    """A file given for training or evaluation is wrong.

    Args:
        path: The file.
        problem: What is wrong with it.
        line: The line, counted from 1; 0 where no line is to blame.
    """

    def __init__(self, path: Path, problem: str, line: int = 0) -> None:
        super().__init__(f"{origin(path, line) if line else path}: {problem}")
        self.path = path
        self.line = line


class Ordinal(int):
    """Which object of an array it is, from 1, where many stand on one line: in the place of the line."""


def origin(path: Path, line: int) -> str:
    """Say where something stands, as people look for it: `reviews.csv, line 7`, `faq.xlsx, row 7`."""
    if isinstance(line, Ordinal):
        return f"{path}, object {line}"
    is_lines = path.suffix not in (".xlsx", ".parquet", "") and not str(path).startswith("hf:")
    return f"{path}, {'line' if is_lines else 'row'} {line}"


class InvalidOption(StoreError):
    """An option is wrong.

    Args:
        name: The option, as `--block` or a recipe's key.
        problem: What is wrong and what would be legal.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


class Diverged(StoreError):
    """A run's loss or weights are no finite numbers any more; nothing of it is exported.

    Args:
        step: The optimizer step at which it was seen.
        rate: The peak of the learning rate.
    """

    def __init__(self, step: int, rate: float) -> None:
        super().__init__(
            f"the training diverged: at step {step:,} the loss is no number any more; nothing is exported. "
            f"Lower --learning-rate (it was {rate:g}), or look for damaged weights in the base model"
        )


class DiskFull(StoreError):
    """There is not, or no longer, enough room on a disk.

    Args:
        folder: Where something was to be written.
        problem: How much is free and how much is needed, and what to do.
    """

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(f"{folder}: {problem}")


class EncodesToNothing(StoreError):
    """A text becomes no token at all, so nothing would be learned of it.

    Args:
        place: Where it stands, as `reviews.csv, line 7`; "" where that is not known.
    """

    def __init__(self, place: str = "") -> None:
        super().__init__(
            f"{place or 'a text'}: the tokenizer encodes it to no token at all, as it knows none of its "
            "characters; train one on such text with textgen model train-tokenizer, or take another model"
        )


class EvaluationFailed(StoreError):
    """The service under evaluation refused, or could not be reached."""
