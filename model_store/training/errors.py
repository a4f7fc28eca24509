"""The exceptions of the training side, all of them children of `StoreError`.

    StoreError
    ├── MissingExtra         a package of the `train` extra is not installed
    ├── InvalidData          a data file is wrong; names the file and the line
    ├── InvalidOption        an option of a training command is not legal, or does not fit the others
    └── EvaluationFailed     a service that was to be measured did not answer

Apart from `model_store/errors.py` because serving needs none of them.
"""

from pathlib import Path

from model_store.errors import StoreError


class MissingExtra(StoreError):
    """A package that only training needs is not installed.

    Args:
        package: The name of the package on PyPI.
    """

    def __init__(self, package: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'textgen-service[train]'")


class InvalidData(StoreError):
    """A file given for training or evaluation is wrong.

    Args:
        path: The file.
        problem: What is wrong with it.
        line: The line, counted from 1; 0 where no line is to blame.
    """

    def __init__(self, path: Path, problem: str, line: int = 0) -> None:
        super().__init__(f"{path}{f', line {line}' if line else ''}: {problem}")
        self.path = path
        self.line = line


class InvalidOption(StoreError):
    """An option is wrong.

    Args:
        name: The option, as `--block` or a recipe's key.
        problem: What is wrong and what would be legal.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


class EvaluationFailed(StoreError):
    """The service under evaluation refused, or could not be reached."""
