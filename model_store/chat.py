"""How a model holds a conversation: messages become the pieces of a prompt.

In order of preference: a template given by hand, the tokenizer's own `chat_template`, the manifest's chat
task, turns that end with the end of text (DialoGPT). What a message says is data: special tokens that stand
in it stay text. Fitting it into the window is the business of whoever serves it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from model_store.chat_template import ChatTemplate, Message
from model_store.errors import ChatError
from model_store.files import is_readable, read_json_if_any
from model_store.task import Task
from model_store.tokenizer import Tokenizer

Segments = list[tuple[str, bool]]  # (text, is_user_text), as `Task.segments` gives them

_CHAT_FIELDS = ({"history"}, {"history", "speaker"})
_SPEAKERS = {"user": "A", "assistant": "B"}
# No text has them all.
_LOSE_NOTHING = (range(0xFDD0, 0xFDF0), range(0xE000, 0xF900), range(0x20000, 0x110000))


class ChatFormat(Protocol):
    """Renders conversations for one model."""

    @property
    def way(self) -> str:
        """`template`, `task` or `turns`: how."""
        ...

    @property
    def task(self) -> Task | None:
        """The task whose defaults and stop strings apply, if it is one."""
        ...

    def segments(self, messages: Sequence[Message]) -> Segments:
        """Give the prompt's pieces, each to be tokenised on its own: a user's text, or a literal whose
        special tokens are recognised.

        Raises:
            ChatError: The format has no place for these messages.
        """
        ...


class TemplateChat:
    """A chat template's text, in pieces where messages hold special tokens.

    Args:
        template: Compiled.
        special_tokens: The texts of all tokens that would be recognised.
    """

    way = "template"
    task = None

    def __init__(self, template: ChatTemplate, special_tokens: Sequence[str]) -> None:
        self._template, self.source = template, template.source
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)", re.IGNORECASE)
        self._edges = _edges(special_tokens)

    def segments(self, messages: Sequence[Message]) -> Segments:
        """See `ChatFormat`. Without special tokens in a message it is one literal, as for transformers.

        Where there are some, a character that no message has is put into each before the template is
        rendered, and after it shows which of the special tokens are not the template's.
        """
        mark = _unused_character("".join(text for message in messages for text in message.values()))
        marked = [{key: self._mark(text, mark) for key, text in message.items()} for message in messages]
        rendered = self._template.render(marked)
        if mark not in rendered:
            return [(rendered, False)] if rendered else []
        return [piece for piece in self._pieces(rendered, mark) if piece[0]]

    def _mark(self, text: str, mark: str) -> str:
        """Break every special token of a message's text, and what could become one with its neighbour."""
        broken = self._special.sub(lambda match: match[0][:1] + mark + match[0][1:], text)
        return self._edges.sub(lambda match: match[0][:1] + mark + match[0][1:], broken)

    def _pieces(self, rendered: str, mark: str) -> Iterator[tuple[str, bool]]:
        """Cut at the template's special tokens: the parts between that hold a mark are text."""
        literal = ""
        for text, is_special in self._parts(rendered):
            if is_special or mark not in text:
                literal += text
                continue
            yield literal, False
            yield text.replace(mark, ""), True
            literal = ""
        yield literal, False

    def _parts(self, rendered: str) -> Iterator[tuple[str, bool]]:
        start = 0
        for match in self._special.finditer(rendered):
            yield rendered[start : match.start()], False
            yield match[0], True
            start = match.end()
        yield rendered[start:], False


class JoinedChat:
    """Turns that each end with the end of text, as DialoGPT was trained.

    Args:
        end: The text of the token that ends a turn.
    """

    way = "turns"
    task = None

    def __init__(self, end: str) -> None:
        self._end = end

    def segments(self, messages: Sequence[Message]) -> Segments:
        """See `ChatFormat`."""
        return [piece for message in messages for piece in ((message["content"], True), (self._end, False))]


class TaskChat:
    """A task of the manifest that takes a history in lines, `A: …` for the user and `B: …` for the model.

    Args:
        task: Of kind generate with the field `history`, and perhaps `speaker`, whose turn it is.
    """

    way = "task"

    def __init__(self, task: Task) -> None:
        self.task = task

    def segments(self, messages: Sequence[Message]) -> Segments:
        """See `ChatFormat`. A system message is a line of its own, without a speaker."""
        fields = {"history": "\n".join(map(self._line, messages)), "speaker": _SPEAKERS["assistant"]}
        return self.task.segments({name: fields[name] for name in self.task.fields})

    def _line(self, message: Message) -> str:
        text = " ".join(message["content"].split())  # a line break would begin another turn
        speaker = _SPEAKERS.get(message["role"])
        return text if speaker is None else f"{speaker}: {text}"


def chat_task(tasks: Mapping[str, Task]) -> Task | None:
    """The task that holds conversations: `chat`, else the first that takes a history."""
    fitting = {name: each for name, each in tasks.items() if each.kind == "generate"}
    suitable = [each for each in fitting.values() if set(each.fields) in _CHAT_FIELDS]
    return next((each for each in suitable if each.name == "chat"), next(iter(suitable), None))


def find_chat(
    folder: Path, tokenizer: Tokenizer, tasks: Mapping[str, Task], template_file: Path | None = None
) -> ChatFormat | None:
    """Find out how a model holds a conversation.

    Args:
        folder: Of the model, in Hugging Face format.
        tokenizer: The model's.
        tasks: Of its manifest.
        template_file: A template that goes before everything the model brings.

    Returns:
        None where there is no way.

    Raises:
        ChatError, UnreadableFile: A template cannot be read.
    """
    source = _read_text(template_file) if template_file is not None else _own_template(folder)
    if source is not None:
        template = ChatTemplate(source, tokenizer.named_specials)
        return TemplateChat(template, tokenizer.special_texts)
    if (task := chat_task(tasks)) is not None:
        return TaskChat(task)
    return JoinedChat(tokenizer.named_specials["eos_token"]) if _is_dialogpt(folder, tokenizer) else None


def _own_template(folder: Path) -> str | None:
    """The tokenizer's template: a file of its own, else in its configuration, there perhaps by name."""
    if is_readable(folder / "chat_template.jinja"):
        return _read_text(folder / "chat_template.jinja")
    given = read_json_if_any(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(given, list):
        given = {each.get("name"): each.get("template") for each in given if isinstance(each, dict)}
    if isinstance(given, dict):
        given = given.get("default")
    return given if isinstance(given, str) and given else None


def _is_dialogpt(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether a checkpoint was trained on turns that end with the end of text, and says so."""
    config = read_json_if_any(folder / "config.json")
    name = str(config.get("_name_or_path") or "")
    uses = config.get("task_specific_params")
    is_conversational = isinstance(uses, dict) and "conversational" in uses
    is_named = "dialogpt" in f"{name} {folder.name}".lower()
    return (is_conversational or is_named) and "eos_token" in tokenizer.named_specials


def _unused_character(text: str) -> str:
    used = set(text)
    return next(chr(code) for codes in _LOSE_NOTHING for code in codes if chr(code) not in used)


def _edges(special_tokens: Sequence[str]) -> re.Pattern[str]:
    """What ends a text and begins a special token: it may become one with what a template writes next."""
    beginnings = {token[:length] for token in special_tokens for length in range(1, len(token))}
    longest_first = sorted(beginnings, key=len, reverse=True)
    return re.compile(
        f"(?:{'|'.join(map(re.escape, longest_first))})\\s*$" if beginnings else r"(?!)", re.IGNORECASE
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ChatError(f"the chat template {path} cannot be read: {error}") from error
