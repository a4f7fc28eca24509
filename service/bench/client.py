"""One request, timed. Per arrival it reads the clock and looks for one string; the rest waits for the end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import httpx

from service.bench.dialect import NEWS, Dialect, read_account
from service.bench.prompts import Ask


@dataclass(slots=True)
class Sample:
    """What happened to one request. Times are seconds on the monotonic clock."""

    kind: str
    started_at: float
    ended_at: float = 0.0
    token_times: list[float] = field(default_factory=list)  # arrivals of tokens; frames read at once are one
    status: int = 0  # 0: no answer
    error: str = ""  # the error's code; "" when all went well
    retry_after: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    is_counted: bool = True  # the server said how many tokens; else arrivals were counted

    @property
    def is_ok(self) -> bool:
        """Whether the request was answered in full."""
        return self.status == 200 and not self.error

    @property
    def ttft_s(self) -> float | None:
        """From sending to the first token; None without streaming."""
        return self.token_times[0] - self.started_at if self.token_times else None

    @property
    def e2e_s(self) -> float:
        """From sending to the end of the answer."""
        return self.ended_at - self.started_at

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first."""
        if self.output_tokens < 2 or len(self.token_times) < 2:
            return None
        return (self.token_times[-1] - self.token_times[0]) / (self.output_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Times between arrivals."""
        return [after - before for before, after in zip(self.token_times, self.token_times[1:], strict=False)]


async def ask_once(client: httpx.AsyncClient, dialect: Dialect, ask: Ask, timeout_s: float) -> Sample:
    """Make one request and read its answer to the end. Never raises for what a server can do wrong.

    Args:
        client: see `wire.make_client`.
        dialect: how to ask.
        ask: what to ask.
        timeout_s: for the whole request.
    """
    body = dialect.body(ask)
    headers = {"Content-Type": "application/json"}
    sample = Sample(ask.kind, time.monotonic())
    pieces: list[bytes] = []
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("POST", dialect.url, content=body, headers=headers) as response,
        ):
            sample.status = response.status_code
            sample.retry_after = response.headers.get("retry-after", "")
            async for data in response.aiter_raw():
                if NEWS in data:
                    sample.token_times.append(time.monotonic())
                pieces.append(data)
    except TimeoutError:
        sample.error = "client_timeout"
    except httpx.HTTPError as error:
        sample.error = type(error).__name__
    sample.ended_at = time.monotonic()
    _settle(sample, b"".join(pieces), dialect.stream)
    return sample


def _settle(sample: Sample, body: bytes, is_stream: bool) -> None:
    account = read_account(body, is_stream and sample.status == 200)
    sample.error = sample.error or account.error
    if sample.status != 200 and not sample.error:
        sample.error = f"http_{sample.status}"
    if not is_stream:
        sample.token_times.clear()
    sample.prompt_tokens = account.prompt_tokens or 0
    sample.is_counted = account.output_tokens is not None
    sample.output_tokens = len(sample.token_times) if account.output_tokens is None else account.output_tokens
