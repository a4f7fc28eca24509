"""docs/models.md and the code agree."""

import re
import tomllib
from pathlib import Path

import pytest

from model_store.sampling import TASK_DEFAULTS
from model_store.task import TASK_KINDS, Task
from model_store.task_files import tasks_from_list

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def table_keys() -> set[str]:
    return set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE))


def test_every_key_of_a_task_is_in_the_table() -> None:
    assert table_keys() == set(Task.__dataclass_fields__)


@pytest.mark.parametrize("name", [*TASK_DEFAULTS, *TASK_KINDS])
def test_every_kind_and_sampling_default_is_named(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_the_example_definition_is_legal() -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert list(tasks_from_list(tomllib.loads(example)["tasks"])) == ["translate", "mood"]
