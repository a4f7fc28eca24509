"""A tokenizer's `chat_template`, rendered as transformers renders it: the same sandbox, filters and globals.

Whose template it is and what becomes of the text: `model_store/chat.py`. A test holds what comes out against
transformers' own `apply_chat_template`.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from model_store.errors import ChatError

Message = Mapping[str, str]  # `role`, `content`, perhaps `name`


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja, as in tokenizer_config.json.
        special_tokens: What it may write by name: `bos_token`, `eos_token` and so on.

    Raises:
        ChatError: It cannot be compiled.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source, self._special_tokens = source, dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ChatError(f"the chat template cannot be read: {error}") from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Give the conversation as text, up to where the model's next turn begins.

        Raises:
            ChatError: The template refuses these messages. Its reason is told where it is a sentence of the
                template, which holds nothing of the messages.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except Exception as error:  # whatever a template stumbles over: it is a program
            reason = str(error)
            told = f": {reason}" if isinstance(error, TemplateError) and reason in self.source else ""
            raise ChatError(f"the model's chat template does not take these messages{told}") from error


class _Generation(Extension):
    """`{% generation %}` marks what a model is trained on; here it is its content."""

    tags = {"generation"}  # noqa: RUF012  as in the class it extends

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Read up to the end of the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        text: str = caller()
        return text


class _Dict:
    """`dict` without what leads out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """See `dict.fromkeys`."""
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """A namespace without attributes that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], args[1:]
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _Namespace._check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError("a namespace has no attribute that begins with an underscore")


def _environment() -> ImmutableSandboxedEnvironment:
    """What a template runs in. Source: transformers 5, utils/chat_template_utils.py."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return made


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
