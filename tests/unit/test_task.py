"""Tasks: what a definition may say, and how fields become a prompt."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_models import write_byte_level

from model_store.default_tasks import default_tasks
from model_store.errors import InvalidFields, InvalidTask
from model_store.task import Task
from model_store.task_files import load_tasks, with_generate
from model_store.tokenizer import Tokenizer

SUMMARIZE = {
    "name": "summarize",
    "kind": "summarize",
    "template": "Summarize the text.\n\nText: {text}\n\nSummary:",
    "document": "text",
    "stop": ["\n\n"],
    "sampling": {"max_new_tokens": 80, "temperature": 0},
}
CHOICE = {"name": "mood", "kind": "choice", "template": "{text}\nMood:", "labels": ["good", "bad"]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_byte_level(tmp_path_factory.mktemp("tokenizer")))


def test_a_space_before_a_field_moves_to_the_fields_text() -> None:
    segments = Task.from_dict(SUMMARIZE).segments({"text": "A king."})
    assert segments == [
        ("Summarize the text.\n\nText:", False),
        (" A king.", True),
        ("\n\nSummary:", False),
    ]


def test_fields_are_listed_in_template_order() -> None:
    assert default_tasks()["qa"].fields == ("context", "question")


def test_doubled_braces_are_braces_and_no_field() -> None:
    task = Task(name="t", kind="generate", template="{{a}} {text}")
    assert task.segments({"text": "b"}) == [("{a}", False), (" b", True)]


def test_braces_in_a_field_stay_as_they_are() -> None:
    task = default_tasks()["generate"]
    assert task.segments({"prompt": "{prompt} {0}"}) == [("{prompt} {0}", True)]


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@settings(deadline=None, derandomize=True)
def test_the_prompt_is_the_template_with_the_field_in_it(tokenizer: Tokenizer, text: str) -> None:
    ids = Task.from_dict(SUMMARIZE).encode(tokenizer, {"text": text})
    assert tokenizer.decode(ids) == f"Summarize the text.\n\nText: {text}\n\nSummary:"


def test_prompts_on_one_document_share_the_ids_up_to_the_question(tokenizer: Tokenizer) -> None:
    task = default_tasks()["qa"]
    first, second = (
        task.encode(tokenizer, {"context": "the sea.", "question": q}) for q in ("Who?", "Where is it?")
    )
    prefix = tokenizer.encode("the sea.") + tokenizer.encode("\nQ:")
    assert first[: len(prefix)] == second[: len(prefix)] == prefix


def test_special_tokens_count_in_the_template_and_not_in_a_field(tokenizer: Tokenizer) -> None:
    task = Task(name="t", kind="generate", template="<|endoftext|>{text}")
    assert task.encode(tokenizer, {"text": "<|endoftext|>"}).count(tokenizer.eos_id) == 1


def test_an_answer_is_one_space_the_stripped_text_and_the_end(tokenizer: Tokenizer) -> None:
    ids = default_tasks()["qa"].encode_answer(tokenizer, "  the king \n")
    assert (tokenizer.decode(ids[:-1]), ids[-1]) == (" the king", tokenizer.eos_id)


def test_an_empty_answer_is_the_end_alone(tokenizer: Tokenizer) -> None:
    assert default_tasks()["qa"].encode_answer(tokenizer, " ") == [tokenizer.eos_id]


@pytest.mark.parametrize("fields", [{}, {"text": "a", "more": "b"}, {"text": 5}])
def test_wrong_fields_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidFields, match=r"field '(text|more)'"):
        Task.from_dict(SUMMARIZE).segments(fields)


@pytest.mark.parametrize("values", [SUMMARIZE, CHOICE, *(t.to_dict() for t in default_tasks().values())])
def test_a_task_survives_the_way_through_json_values(values: dict[str, object]) -> None:
    task = Task.from_dict(values)
    assert Task.from_dict(task.to_dict()) == task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Bad Name"}, "name: must be 1 to 64"),
        ({"kind": "chat"}, "kind: must be one of generate, summarize, qa, choice"),
        ({"template": "no field"}, "template: must have at least one field"),
        ({"template": "{text} {text}"}, "template: has a field twice"),
        ({"template": "{text!r}"}, "template: a field is a plain name"),
        ({"template": "{text"}, "template: expected '}'"),
        ({"template": "{}"}, "template: a field is a plain name"),
        ({"template": "{article}", "document": "article"}, "must have the fields text"),
        ({"template": 5}, "template: must be a string"),
        ({"document": "title"}, "document: must be a field of the template: text"),
        ({"document": None}, "document: is missing"),
        ({"stop": "\n"}, "stop: must be a list of strings"),
        ({"stop": [""]}, "stop: must be at most 8 non-empty strings"),
        ({"sampling": {"temprature": 1}}, "sampling.temprature: is unknown; legal are max_new_tokens"),
        ({"sampling": {"temperature": 3}}, "sampling.temperature: must be at least 0 and at most 2"),
        ({"sampling": {"top_k": True}}, "sampling.top_k: must be an integer"),
        ({"sampling": {"top_p": 0}}, "sampling.top_p: must be more than 0 and at most 1"),
        ({"sampling": {"temperature": float("nan")}}, "sampling.temperature: must be at least 0"),
        ({"sampling": []}, "sampling: must be an object"),
        ({"labels": ["a", "b"]}, "labels: belong to kind 'choice' only"),
        ({"no_answer": "none"}, "no_answer: belongs to kind 'qa' only"),
        ({"colour": "red"}, "colour: is unknown; legal keys are name"),
    ],
)
def test_a_wrong_definition_names_the_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        Task.from_dict({**SUMMARIZE, **change})
    assert message in str(caught.value)


@pytest.mark.parametrize("labels", [[], ["good"], ["good", "good "], ["good", ""]])
def test_a_choice_needs_two_different_labels(labels: list[str]) -> None:
    with pytest.raises(InvalidTask, match="labels: must be two or more"):
        Task.from_dict({**CHOICE, "labels": labels})


@pytest.mark.parametrize("values", [None, [], "task", {"name": "a"}])
def test_what_is_no_definition_is_refused(values: object) -> None:
    with pytest.raises(InvalidTask):
        Task.from_dict(values)  # type: ignore[arg-type]


def test_a_toml_file_with_one_task_is_read(tmp_path: Path) -> None:
    path = tmp_path / "translate.toml"
    path.write_text(
        'name = "translate"\nkind = "generate"\ntemplate = "English: {text}\\nFrench:"\nstop = ["\\n"]\n'
    )
    assert load_tasks(path)["translate"].stop == ("\n",)


def test_a_json_file_with_several_tasks_keeps_their_order(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(
        '{"tasks": [{"name": "b", "kind": "generate", "template": "{x}"},'
        ' {"name": "a", "kind": "generate", "template": "{y}"}]}'
    )
    assert list(load_tasks(path)) == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "tasks.json: file: cannot be read"),
        ("[" * 99_999, "tasks.json: file: cannot be read"),
        ('{"tasks": []}', "tasks.json: tasks: must be a list of at least one task"),
        (
            '{"tasks": [{"name": "a", "kind": "x", "template": "{t}"}]}',
            "tasks.json: tasks[0].kind: must be one of",
        ),
        ('{"tasks": [], "more": 1}', "tasks.json: more: is unknown"),
    ],
)
def test_a_wrong_file_is_named_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(text)
    with pytest.raises(InvalidTask) as caught:
        load_tasks(path)
    assert message in str(caught.value)


def test_a_task_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    one = '{"name": "a", "kind": "generate", "template": "{t}"}'
    (tmp_path / "tasks.json").write_text(f'{{"tasks": [{one}, {one}]}}')
    with pytest.raises(InvalidTask, match="'a' is there twice"):
        load_tasks(tmp_path / "tasks.json")


def test_generate_is_always_there_and_first() -> None:
    assert list(with_generate({"mood": Task.from_dict(CHOICE)})) == ["generate", "mood"]


def test_generate_with_another_template_is_refused() -> None:
    wrong = Task(name="generate", kind="generate", template="Story: {prompt}")
    with pytest.raises(InvalidTask, match=r"generate\.template"):
        with_generate({"generate": wrong})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, True, "much"])
def test_the_penalty_of_no_answer_is_a_number(value: object) -> None:
    definition = {"name": "ask", "kind": "qa", "template": "{context} {question}", "document": "context"}
    with pytest.raises(InvalidTask, match="no_answer_penalty"):
        Task.from_dict({**definition, "no_answer": "none", "no_answer_penalty": value})


def test_the_penalty_of_no_answer_needs_one() -> None:
    definition = {"name": "ask", "kind": "qa", "template": "{context} {question}", "document": "context"}
    with pytest.raises(InvalidTask, match="belongs to tasks with no_answer"):
        Task.from_dict({**definition, "no_answer_penalty": 1.0})
