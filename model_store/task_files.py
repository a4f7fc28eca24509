"""Task definitions at rest: JSON and TOML files, and the list in a manifest. See `model_store/task.py`."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

from model_store.default_tasks import generate_task
from model_store.errors import InvalidTask, UnreadableFile
from model_store.files import read_json
from model_store.task import Task


def load_tasks(path: Path) -> dict[str, Task]:
    """Read task definitions from a `.json` or `.toml` file.

    Args:
        path: A file that holds one task, or several in a list under the key `tasks`.

    Returns:
        The tasks by name, in the file's order.

    Raises:
        InvalidTask: The file cannot be read or a definition is wrong; the message names the file.
    """
    try:
        if path.suffix not in (".json", ".toml"):
            raise InvalidTask("file", "must end in .json or .toml")
        try:
            is_toml = path.suffix == ".toml"
            values = tomllib.loads(path.read_text(encoding="utf-8")) if is_toml else read_json(path)
        except (OSError, ValueError, UnreadableFile) as error:
            raise InvalidTask("file", f"cannot be read: {error}") from error
        if "tasks" not in values:
            return tasks_from_list([values])
        for key in values.keys() - {"tasks"}:
            raise InvalidTask(key, "is unknown beside the list 'tasks'")
        return tasks_from_list(values["tasks"])
    except InvalidTask as error:
        raise InvalidTask(f"{path.name}: {error.key}", error.problem) from error


def tasks_from_list(values: object) -> dict[str, Task]:
    """Build tasks from a list of JSON values, by name.

    Raises:
        InvalidTask: The key names the place, as `tasks[1].template`.
    """
    if not isinstance(values, list) or not values:
        raise InvalidTask("tasks", "must be a list of at least one task")
    tasks: dict[str, Task] = {}
    for index, value in enumerate(values):
        try:
            task = Task.from_dict(value)
        except InvalidTask as error:
            raise InvalidTask(f"tasks[{index}].{error.key}", error.problem) from error
        if task.name in tasks:
            raise InvalidTask(f"tasks[{index}].name", f"{task.name!r} is there twice")
        tasks[task.name] = task
    return tasks


def with_generate(tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Give `tasks` with the `generate` task, first, where it was missing.

    Raises:
        InvalidTask: There is a `generate` task, and its template is not "{prompt}".
    """
    generate = tasks.get("generate", generate_task())
    if (generate.kind, generate.template) != ("generate", "{prompt}"):
        raise InvalidTask("generate.template", "the task 'generate' must have the template '{prompt}'")
    return {"generate": generate, **{name: task for name, task in tasks.items() if name != "generate"}}
