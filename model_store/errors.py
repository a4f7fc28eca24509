"""Every exception that `model_store` raises on purpose.

    StoreError
    ├── InvalidTask          a task definition is wrong; names the key and the legal values
    ├── InvalidFields        the fields given to a task are not the ones its template has
    ├── InvalidText          a text cannot be encoded: lone surrogates, or nothing in the vocabulary for it
    ├── TokenizerError       a tokenizer's files are missing, broken, or of a kind that is not supported
    ├── InvalidManifest      manifest.json is not what it has to be; names the key
    ├── ModelNotFound        no such model or version; suggests names that are near
    ├── CorruptEntry         a file of an entry is missing, foreign, or differs from its checksum
    ├── EntryExists          the version is there already; versions never change
    ├── EntryInUse           the version is active and was not removed
    ├── UnreadableFile       a file is missing, no file, may not be read or is broken; names it and the cause
    ├── UnsupportedCheckpoint  a checkpoint is not a GPT-2 that can be served; names what and where
    ├── ImportRefused        a checkpoint cannot become an entry; says why
    └── GoldenMismatch       an entry's golden prompts do not give the texts that its manifest promises

One message is one line and can be shown to a person as it is. No exit codes and no printing here: see
`model_store/cli.py`.
"""


def one_line(text: str) -> str:
    """Write line ends, escape sequences and lone surrogates of names that others gave so that they show."""
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)


class StoreError(Exception):
    """The parent of all: catch this one to show a message and stop."""

    def __str__(self) -> str:
        """The message, on one line."""
        return one_line(super().__str__())


class InvalidTask(StoreError):
    """A task definition is wrong.

    Args:
        key: The wrong key, as `name`, `sampling.top_p` or `tasks.qa.template`.
        problem: What is wrong and what would be legal.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        self.problem = problem


class InvalidFields(StoreError):
    """The fields given to a task are not exactly the ones in its template.

    Args:
        field: The field that is missing or unknown.
        problem: What is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field {field!r} {problem}")
        self.field = field


class InvalidText(StoreError):
    """A text holds code points that no UTF-8 has (lone surrogates), or that a vocabulary cannot write."""


class TokenizerError(StoreError):
    """A tokenizer cannot be loaded."""


class ChatError(StoreError):
    """A chat template cannot be read, or does not take a conversation."""


class InvalidManifest(StoreError):
    """A manifest is wrong.

    Args:
        key: The wrong key, as `files.model.safetensors.sha256`.
        problem: What is wrong and what would be legal.
    """

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"manifest.json: {key}: {problem}")
        self.key = key


class ModelNotFound(StoreError):
    """No model or version answers to that name."""


class CorruptEntry(StoreError):
    """An entry is not what its manifest says."""


class EntryExists(StoreError):
    """That version is in the store already."""


class EntryInUse(StoreError):
    """That version is the active one."""


class UnreadableFile(StoreError):
    """A file cannot be read."""


class UnsupportedCheckpoint(StoreError):
    """A checkpoint cannot be served, or this machine cannot hold it."""


class ImportRefused(StoreError):
    """A checkpoint cannot become a store entry."""


class GoldenMismatch(StoreError):
    """A model does not say what its golden prompts promise."""
