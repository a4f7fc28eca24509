"""What went wrong, as HTTP: one table from exception to status and code, one body for each dialect.

Framework errors (404, 405, validation) come through here too, so every refusal looks alike. No message holds
the client's input: values are never shown, a field name only where it looks like one.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from starlette.exceptions import HTTPException

from model_store.errors import InvalidText
from service import errors
from service.api.json_pieces import compact

Dialect = Literal["native", "openai", "hugging_face"]

STATUSES = {
    "bad_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "invalid_request": 422,
    "prompt_too_long": 422,
    "queue_full": 429,
    "headers_too_large": 431,
    "internal": 500,
    "not_ready": 503,
    "draining": 503,
    "deadline_exceeded": 504,
}

_CODES: tuple[tuple[type[errors.TextgenError], str], ...] = (
    (errors.PromptTooLong, "prompt_too_long"),
    (errors.NotFound, "not_found"),
    (errors.RequestError, "invalid_request"),
    (errors.QueueFull, "queue_full"),
    (errors.Draining, "draining"),
    (errors.Refused, "not_ready"),
    (errors.DeadlineExceeded, "deadline_exceeded"),
)

_FRAMEWORK = {
    405: ("method_not_allowed", "this path has no such method; the Allow header names those it has"),
}
_TGI_TYPES = {400: "validation", 404: "validation", 422: "validation", 429: "overloaded"}
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_INTERNAL = "something failed in the service; its log tells more under this request id"


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal or failure, before it takes a dialect's shape."""

    code: str  # a key of STATUSES
    message: str
    param: str | None = None
    retry_after_s: float | None = None

    def status(self, dialect: Dialect) -> int:
        """HTTP status; OpenAI's clients expect 400 where we say 422."""
        status = STATUSES[self.code]
        return 400 if dialect == "openai" and status == 422 else status

    def headers(self, dialect: Dialect) -> dict[str, str]:
        """Headers that belong to the status."""
        headers: dict[str, str] = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.code == "unauthorized":
            headers["WWW-Authenticate"] = "Bearer"
        if self.code == "deadline_exceeded" and dialect == "openai":
            headers["X-Should-Retry"] = "false"
        return headers

    def spelled(self, names: Mapping[str, str]) -> Problem:
        """The same in the caller's names of fields.

        Args:
            names: by ours. In a message, one without an underscore is a word, but where it begins with it.
        """
        if not names:
            return self
        param = self.param or ""
        theirs = ".".join(names.get(part, part) for part in param.split("."))
        begins = theirs if self.message.startswith(param) else ""
        rest = self.message[len(param) if begins else 0 :]
        rest = re.sub(r"[A-Za-z]+(?:_[A-Za-z]+)+", lambda match: names.get(match[0], match[0]), rest)
        return replace(self, message=begins + rest, param=theirs or None)

    def body(self, dialect: Dialect, request_id: str) -> dict[str, Any]:
        """The error body of a dialect."""
        if dialect == "native":
            fields = {"code": self.code, "message": self.message, "param": self.param}
            return {"error": {**fields, "request_id": request_id}}
        if dialect == "hugging_face":
            return {"error": self.message, "error_type": _TGI_TYPES.get(STATUSES[self.code], "generation")}
        status = self.status(dialect)
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        code = "context_length_exceeded" if self.code == "prompt_too_long" else self.code
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}

    def encoded(self, dialect: Dialect, request_id: str) -> bytes:
        """The body as compact JSON bytes."""
        return compact(self.body(dialect, request_id)).encode()


class HttpProblem(HTTPException):
    """A refusal that only HTTP knows: raised by the API layer, passed through by the framework.

    Args:
        code: a key of `STATUSES`.
        message: what is wrong and what is legal; never the client's input.
        param: the field at fault, if one is.
        retry_after_s: seconds after which to try again, if that helps.
    """

    def __init__(
        self, code: str, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        self.problem = Problem(code, message, param, retry_after_s)
        super().__init__(STATUSES[code], message)


def problem_for(error: BaseException, path: str = "") -> Problem:
    """Map any exception to what the client is told; unknown ones are `internal`.

    Args:
        error: what was raised.
        path: of the request.
    """
    if isinstance(error, HttpProblem):
        return error.problem
    if isinstance(error, HTTPException) and error.status_code == 404:
        return Problem("not_found", nothing_at(path))
    if isinstance(error, HTTPException) and error.status_code < 500:  # what the framework refuses by itself
        code, message = _FRAMEWORK.get(error.status_code, ("bad_request", "the request could not be read"))
        return Problem(code, message)
    for kind, code in _CODES:
        if isinstance(error, kind):
            return Problem(
                code,
                error.message,
                getattr(error, "param", None),
                getattr(error, "retry_after_s", None),
            )
    if isinstance(error, InvalidText):
        return Problem("invalid_request", str(error))
    if isinstance(error, errors.EngineFault):
        return Problem("internal", error.message)
    return Problem("internal", _INTERNAL)


# ---- paths -------------------------------------------------------------------------------------------------

_PATH = re.compile(r"/[A-Za-z0-9/_.~-]{0,99}")
_CHAT = "use POST /v1/chat/completions"
_INSTEAD = (  # of what clients of other services ask for
    (r"/v1(/v1)+/.*", "the base URL ends in /v1 once"),
    (r"/(chat/completions|completions|models)", "put /v1 before it: the base URL ends in /v1"),
    (r"/v1/(engines|models)/.+/completions", "use POST /v1/completions"),
    (r"/v1/(responses|assistants|threads)(/.*)?", _CHAT),
    (r"/api/(chat|generate|tags)", f"{_CHAT} or POST /generate"),
    (r"/v1/messages(/.*)?", _CHAT),
    (r"(/v1)?/(edits|completion)", "use POST /v1/completions"),
    (r"(/v1)?/chat(/completion)?", _CHAT),
    (r"/v1/(embeddings|moderations|images|audio|rerank|score)(/.*)?", "this service only generates text"),
    (r"/v1/(fine_tuning|files|batches|uploads)(/.*)?", "use `textgen model finetune` or `textgen batch`"),
    (r"/.+/", "it ends in a slash; leave that out"),
)


def nothing_at(path: str) -> str:
    """Say that there is nothing at a path, and where to go instead if that is known."""
    name = path if _PATH.fullmatch(path) else "this path"
    hints = (hint for pattern, hint in _INSTEAD if re.fullmatch(pattern, path[:200]))
    return f"there is nothing at {name}; {next(hints, 'GET /docs lists what there is')}"


# ---- validation --------------------------------------------------------------------------------------------

_EXPECTED = {
    "string_type": "must be a string",
    "string_unicode": "must be Unicode text: it holds half of a surrogate pair",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "missing": "is required",
    "literal_error": "has no such choice",
}


_ELSEWHERE = {"do_sample": "temperature"}  # transformers' name for ours
# how alike names are: where the first is wrong for sure, and where a task may have it (`topic` is no `top_p`)
_PERHAPS, _SURELY = 0.6, 0.8


def validation_problem(faults: Sequence[Mapping[str, Any]], legal: Mapping[str, str]) -> Problem:
    """Say what is wrong with a body, in our words.

    Args:
        faults: pydantic's errors; only types, places and our own limits are read, never the input.
        legal: legal values in words, by field name; the keys are the names that exist.
    """
    first = next((error for error in faults if _is_misspelt(error, faults)), faults[0])
    place = [part for part in first["loc"] if part != "body"]
    kind = str(first["type"])
    if not place:
        return Problem("invalid_request", "the body " + _EXPECTED.get(kind, "must be an object"))
    if kind == "extra_forbidden":
        return _unknown_field(str(place[-1]), legal)
    names = [str(part) for part in place if isinstance(part, int) or part in legal]
    hint = next((legal[name] for name in reversed(names) if legal.get(name)), "")
    if not names and _FIELD_NAME.fullmatch(name := str(place[0])):  # a field of a task, or one misspelt
        names, hint = [name], "the fields that GET /tasks lists, each a string beside the others"
        hint += _meant(name, legal, _SURELY)
    path = ".".join(names)
    text = _EXPECTED.get(kind, "has a value that is not legal")
    legal_text = f"; legal: {hint}" if hint and kind != "missing" else ""
    return Problem("invalid_request", f"{path or 'a field'} {text}{legal_text}", path or None)


def _is_misspelt(error: Mapping[str, Any], faults: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an unknown field looks like a required one that is missing beside it."""
    if error["type"] != "extra_forbidden":
        return False
    *place, name = error["loc"]
    missing = [str(e["loc"][-1]) for e in faults if e["type"] == "missing" and [*e["loc"][:-1]] == place]
    return difflib.get_close_matches(str(name)[:100], missing) != []


def _meant(name: str, legal: Mapping[str, str], similarity: float) -> str:
    """Ask whether the field was meant that is most like `name`; "" if none is that similar, from 0 to 1."""
    near = [_ELSEWHERE[name]] if name in _ELSEWHERE else []
    near = near or difflib.get_close_matches(name, legal, n=1, cutoff=similarity)
    return f"; did you mean {near[0]}?" if near else ""


def _unknown_field(name: str, legal: Mapping[str, str]) -> Problem:
    """Name an unknown field only if it looks like one: a typo helps, a pasted secret is not repeated."""
    is_name = _FIELD_NAME.fullmatch(name) is not None
    hint = (is_name and _meant(name, legal, _PERHAPS)) or "; /docs lists the fields"
    named = f": {name}" if is_name else ""
    return Problem(
        "invalid_request", f"the body has a field that does not exist{named}{hint}", name if is_name else None
    )
