"""The options that say what to train on, the same for `finetune` and `preview`. Used by `cli.py`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from model_store.cli_store import DEFAULT_STORE
from model_store.entry import ModelEntry
from model_store.store import resolve
from model_store.task import Task
from model_store.task_files import load_tasks
from model_store.training.errors import InvalidOption
from model_store.training.material import Material
from model_store.training.recipe import Source, load_recipe
from model_store.training.task_rows import mapped, task_source


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What to fine-tune on, and the model to begin with.

    Args:
        model: A folder (with a /), or a model of the store; empty: the default.
        tasks: Task definitions, .toml or .json.
        data: TASK=FILE: JSON, CSV, XLSX, parquet, hf:OWNER/NAME:SPLIT; repeatable.
        map: FIELD=COLUMN,… or TASK:FIELD=COLUMN,…; repeatable.
        encoding: Of the files of --data; empty: found out.
        skip_empty: Leave out rows whose text or answer is empty, and count them, instead of refusing them.
        text: Text, for a second domain; repeatable.
        recipe: A TOML file with a table [[source]] for each source.
        corpus: The folder that a recipe's paths are relative to.
        valid: TASK=FILE, or a text FILE, to validate on; repeatable.
        valid_share: Share of each task's examples and of the texts kept for validation without --valid;
            empty: a tenth of small data, 2 % of large.
        group: Column whose equal values validate together; empty: the document, or dialogue.
        replay: Share of old work to mix in, against forgetting; 0 only measures what is forgotten.
        replay_data: TASK=FILE, or a text FILE, of old work; repeatable; empty: the model writes it itself.
        block: Tokens in a row; 0 chooses from the lengths.
        loss_everywhere: Learn the prompts too, not the answers only.
        store: The store's folder.
    """

    model: str = ""
    tasks: Path | None = None
    data: list[str] | None = None
    map: list[str] | None = None
    encoding: str = ""
    skip_empty: bool = False
    text: list[Path] | None = None
    recipe: Path | None = None
    corpus: Path = Path()
    valid: list[str] | None = None
    valid_share: float | None = None
    group: str = ""
    replay: float = 0.0
    replay_data: list[str] | None = None
    block: int = 0
    loss_everywhere: bool = False
    store: Path = DEFAULT_STORE

    def read(self) -> tuple[ModelEntry, Material]:
        """Find the model, and say what it is to be trained on.

        Raises:
            StoreError: An option is wrong, or the model is not there.
        """
        entry = resolve(self.model, self.store.expanduser())
        known = {**entry.tasks, **(load_tasks(self.tasks) if self.tasks else {})}
        given = self._mapped([task_source(item, "--data") for item in self.data or []], known)
        given += [Source(path) for path in self.text or []]
        valid = [_text_or_task(item, "--valid") for item in self.valid or []]
        old = [_text_or_task(item, "--replay-data") for item in self.replay_data or []]
        return entry, Material(
            sources=sources(given, self.recipe, self.corpus, known, "--data"),
            tasks=known,
            valid=tuple(self._mapped(valid, known)),
            valid_share=self.valid_share,
            block=self.block,
            is_loss_everywhere=self.loss_everywhere,
            base_tasks=entry.tasks,
            replay=self.replay,
            old=tuple(self._mapped(old, known)),
        )

    def _mapped(self, given: list[Source], tasks: Mapping[str, Task]) -> list[Source]:
        named = mapped(given, self.map or [], tasks, self.encoding)
        return [
            replace(each, group=self.group, skip_empty=self.skip_empty) if each.kind == "examples" else each
            for each in named
        ]


def sources(
    given: list[Source], recipe: Path | None, corpus: Path, tasks: Mapping[str, Task], option: str
) -> tuple[Source, ...]:
    """Give what options and a recipe name together.

    Raises:
        InvalidOption: They name nothing, or the recipe is wrong.
    """
    sources = [*given, *(load_recipe(recipe, corpus, tasks) if recipe else [])]
    if not sources:
        raise InvalidOption(option, "is missing; give data with it or with --recipe")
    return tuple(sources)


def _text_or_task(item: str, option: str) -> Source:
    """What TASK=FILE or the name of a text file stands for."""
    if "=" in item and not Path(item).exists():
        return task_source(item, option)
    return Source(Path(item))
