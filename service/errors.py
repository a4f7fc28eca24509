"""The exception tree of the service. No HTTP in it: `service.api.problems` gives each class status and body.

    TextgenError
    ├── SettingsError            the environment or a flag holds a wrong value; the start stops with one line
    ├── RequestError             the caller can do better: names a field and says what is legal
    │   ├── InvalidRequest       a value out of its range, fields that contradict each other
    │   ├── PromptTooLong        prompt + new tokens do not fit the model's window
    │   └── NotFound             no such task, model or path
    ├── Refused                  the right request at the wrong time; carries `retry_after_s`
    │   ├── QueueFull            the waiting queue, or the key's share of it, is full
    │   ├── NotReady             the model is still loading
    │   ├── Draining             the process was told to stop and takes no new work
    │   └── EngineDead           the engine thread died or hangs
    ├── DeadlineExceeded         the request's `timeout_s` passed, queueing included
    └── EngineFault              a step failed under this request; details are in the log

No message ever holds the caller's input: a reply may be logged on its way.
"""

from __future__ import annotations


class TextgenError(Exception):
    """Root of everything the service raises on purpose.

    Args:
        message: one sentence for the reader of the reply or the terminal; never the caller's input.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class SettingsError(TextgenError):
    """A setting is wrong. `str(error)` has one line for each, with its legal values."""


class RequestError(TextgenError):
    """The request cannot be served as it stands.

    Args:
        message: what is wrong and what is legal.
        param: dotted path of the field at fault ("stop", "prompt.3"), None when no single field is.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(RequestError):
    """A value out of its range, or fields that contradict each other."""


class PromptTooLong(RequestError):
    """Prompt and new tokens do not fit the window; the message says the largest number that does."""


class NotFound(RequestError):
    """No such task or model."""


class Refused(TextgenError):
    """Come back later.

    Args:
        message: why.
        retry_after_s: seconds after which a new attempt is likely to be taken, > 0.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Refused):
    """The waiting queue is full; `retry_after_s` comes from the measured drain rate."""


class NotReady(Refused):
    """The model is still loading or warming up."""

    def __init__(self, message: str = "the model is still loading", retry_after_s: float = 2.0) -> None:
        super().__init__(message, retry_after_s)


class Draining(Refused):
    """The process was told to stop: what runs finishes, new work is refused."""

    def __init__(
        self,
        message: str = "the service is shutting down and takes no new work",
        retry_after_s: float = 5.0,
    ) -> None:
        super().__init__(message, retry_after_s)


class EngineDead(Refused):
    """The engine thread died, or hangs with work before it. The process will end and be restarted."""

    def __init__(
        self,
        message: str = "the engine stopped working; the service is about to restart",
        retry_after_s: float = 5.0,
    ) -> None:
        super().__init__(message, retry_after_s)


class DeadlineExceeded(TextgenError):
    """The request's time is over, whether it waited or ran."""

    def __init__(self, message: str = "the request did not finish within its timeout_s") -> None:
        super().__init__(message)


class EngineFault(TextgenError):
    """A step failed and took this request with it; other requests go on."""

    def __init__(self, message: str = "the engine failed while it worked on this request") -> None:
        super().__init__(message)
