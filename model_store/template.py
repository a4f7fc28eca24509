"""Templates of prompts: literals and fields in braces, as in "Text: {text}". See `model_store/task.py`."""

from collections.abc import Mapping
from string import Formatter

from model_store.errors import InvalidTask


def parse(template: str) -> list[tuple[str, str | None]]:
    """Split a template into (literal, the field after it or None), with escapes resolved.

    Raises:
        InvalidTask: A brace stands alone, or a field is more than a name.
    """
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise InvalidTask("template", f"{error}; write {{{{ and }}}} for braces in the text") from error
    merged: list[tuple[str, str | None]] = []
    literals = ""
    for literal, name, spec, conversion in pieces:
        literals += literal
        if name is None:
            continue
        if spec or conversion or not name.isidentifier():
            raise InvalidTask("template", f"a field is a plain name in braces, not {{{name}}} with options")
        merged.append((literals, name))
        literals = ""
    return [*merged, (literals, None)] if literals else merged


def render(template: str, fields: Mapping[str, str]) -> list[tuple[str, bool]]:
    """Give (text, is_user_text) in order, each to be tokenised on its own; empty texts are left out.

    A space that ends a literal before a field moves to the field's text ("Text: {text}" gives "Text:" and
    " " + text), because byte-level BPE joins a space to the word after it.
    """
    segments: list[tuple[str, bool]] = []
    for literal, name in parse(template):
        has_space = name is not None and literal.endswith(" ")
        segments.append((literal[:-1] if has_space else literal, False))
        if name is not None:
            segments.append((" " * has_space + fields[name], True))
    return [segment for segment in segments if segment[0]]
