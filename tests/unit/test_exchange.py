"""A request ends in one way, whatever ends it, and gives back what it was given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from exchanges import make_exchange, stays
from starlette.types import Message, Receive, Scope, Send

from service.api.bodies import FREE_BODY_BYTES
from service.api.client import ClientGone
from service.api.exchange import Exchange, exchange_of
from service.api.json_reply import LargeResponse
from service.api.state import Served, ServiceState
from service.errors import DeadlineExceeded, Draining, QueueFull
from service.settings import Settings
from service.tasks.calls import GenerateResult, Timings, Usage
from service.tasks.events import Done, Event

pytestmark = pytest.mark.asyncio


async def leaves() -> Message:
    return {"type": "http.disconnect"}


class Work:
    """Waits for ever; notes that it was cancelled."""

    def __init__(self) -> None:
        self.is_over = False

    async def go_on(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.is_over = True


async def test_work_that_ends_gives_its_result() -> None:
    async def work() -> int:
        return 5

    assert await make_exchange().run(work()) == 5


async def test_work_that_fails_raises_what_it_raised() -> None:
    async def work() -> None:
        raise QueueFull("full")

    with pytest.raises(QueueFull):
        await make_exchange().run(work())


async def test_a_timeout_of_the_works_own_is_no_deadline() -> None:
    async def work() -> None:
        async with asyncio.timeout(-1):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await make_exchange().run(work())


async def test_a_client_that_leaves_ends_the_work() -> None:
    work = Work()
    with pytest.raises(ClientGone):
        await make_exchange(leaves).run(work.go_on())
    assert work.is_over


async def test_the_deadline_ends_the_work() -> None:
    exchange, work = make_exchange(), Work()
    exchange.origin(is_streamed=False, timeout_s=1e-9)
    with pytest.raises(DeadlineExceeded):
        await exchange.run(work.go_on())
    assert work.is_over


RESULT = GenerateResult(0, (), Usage(0, 0, 0, 0), Timings(0, 0, 0, 0))


class Finished:
    """A task that has just done its work."""

    async def __aenter__(self) -> AsyncIterator[Event]:
        async def events() -> AsyncIterator[Event]:
            yield Done(RESULT)

        return events()

    async def __aexit__(self, *_: object) -> None:
        return None


async def test_work_that_is_done_in_time_is_told_however_late_it_then_is() -> None:
    exchange, sent = make_exchange(), bytearray()
    exchange.origin(is_streamed=False, timeout_s=1e-9)

    async def send(message: Message) -> None:
        await asyncio.sleep(0)
        sent.extend(message.get("body", b""))

    assert await exchange.result_of(Finished()) is RESULT  # type: ignore[arg-type]
    scope: Scope = {"type": "http", "textgen.exchange": exchange}
    await LargeResponse(iter([b"all ", b"of it"]))(scope, stays, send)
    assert sent == b"all of it"


async def test_a_client_that_takes_its_late_reply_slowly_has_no_more_than_the_time_to_send() -> None:
    exchange = make_exchange(state=ServiceState(Settings(send_timeout_s=1e-9)))
    exchange.origin(is_streamed=False, timeout_s=1e-9)
    await exchange.result_of(Finished())  # type: ignore[arg-type]
    with pytest.raises(DeadlineExceeded):
        await exchange.run(Work().go_on())


async def test_a_request_can_only_shorten_its_time() -> None:
    exchange = make_exchange(state=ServiceState(Settings(request_timeout_s=10)))
    exchange.origin(is_streamed=False, timeout_s=99)
    assert exchange.deadline == exchange.started_at + 10


async def test_what_ends_it_from_outside_is_what_the_client_is_told() -> None:
    exchange, work = make_exchange(), Work()
    asyncio.get_running_loop().call_soon(exchange.fail, Draining())
    with pytest.raises(Draining):
        await exchange.run(work.go_on())
    assert work.is_over


async def test_the_first_end_counts() -> None:
    exchange = make_exchange()
    exchange.fail(Draining())
    exchange.fail(ClientGone())
    with pytest.raises(Draining):
        await exchange.run(Work().go_on())


async def test_an_end_from_outside_and_the_deadline_at_once_are_one_end() -> None:
    exchange = make_exchange()
    exchange.origin(is_streamed=False, timeout_s=1e-9)
    asyncio.get_running_loop().call_soon(exchange.fail, Draining())
    with pytest.raises(Draining):
        await exchange.run(Work().go_on())
    await asyncio.sleep(0)  # nothing is left that would cancel this task
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_the_servers_own_end_is_no_end_of_ours() -> None:
    running = asyncio.create_task(make_exchange().run(Work().go_on()))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_no_task_is_left_behind() -> None:
    before = asyncio.all_tasks()
    for receive in (leaves, stays):
        exchange = make_exchange(receive)
        exchange.origin(is_streamed=False, timeout_s=1e-9)
        with pytest.raises((ClientGone, DeadlineExceeded)):
            await exchange.run(Work().go_on())
    assert asyncio.all_tasks() == before


# ---- from the door to the end -----------------------------------------------------------------------------


class Room:
    """An engine that has room, or not."""

    is_ready = is_alive = True

    def check_room(self, tenant: str) -> None:
        return None


class Held:
    """A task that notes whether it was left."""

    is_left = False

    async def __aenter__(self) -> Iterator[Event]:
        return iter(())

    async def __aexit__(self, *_: object) -> None:
        self.is_left = True


@pytest.fixture
def state() -> ServiceState:
    state = ServiceState(Settings(api_keys="one,two", key_concurrency=1))
    engine: Any = Room()
    state.served = Served("m", "1", {}, engine, engine, 0, {})
    return state


def body_of(size: int) -> Receive:
    """A client that sends a body and then waits."""
    messages = [{"type": "http.request", "body": b" " * size, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else await stays()

    return receive


KEY = {"authorization": "Bearer one", "content-length": "100000"}


def held(state: ServiceState) -> tuple[int, int]:
    """What requests hold at present: places of keys, bytes of bodies."""
    return state.keyring._in_flight.total(), state.body_room.num_held


async def answers(exchange: Exchange, scope: Scope, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def raises(exchange: Exchange, scope: Scope, send: Send) -> None:
    raise QueueFull("full")


async def breaks(exchange: Exchange, scope: Scope, send: Send) -> None:
    raise KeyError("secret")


async def loses_its_client(exchange: Exchange, scope: Scope, send: Send) -> None:
    asyncio.get_running_loop().call_soon(exchange.fail, ClientGone())
    await exchange.run(Work().go_on())


async def is_too_late(exchange: Exchange, scope: Scope, send: Send) -> None:
    exchange.origin(is_streamed=False, timeout_s=1e-9)
    await exchange.run(Work().go_on())


Answer = Callable[[Exchange, Scope, Send], Awaitable[None]]


@pytest.mark.parametrize(
    ("answer", "status", "outcome"),
    [
        (answers, 200, ""),
        (raises, 429, "queue_full"),
        (breaks, 500, "internal"),
        (loses_its_client, 0, "abort"),
        (is_too_late, 504, "deadline_exceeded"),
    ],
)
async def test_every_end_gives_back_all_that_was_given(
    state: ServiceState, answer: Answer, status: int, outcome: str
) -> None:
    job, sent, seen = Held(), [], []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["textgen.exchange"]
        await exchange.admit(job)  # type: ignore[arg-type]
        seen.append((held(state), len(state.in_flight)))
        await answer(exchange, scope, send)

    async def send(message: Message) -> None:
        sent.append(message)

    exchange = make_exchange(body_of(100_000), send, headers=KEY, state=state)
    await exchange.serve(app)
    assert seen == [((1, 100_000 - FREE_BODY_BYTES), 1)]
    assert (held(state), len(state.in_flight), job.is_left) == ((0, 0), 0, True)
    assert (exchange.client.status, exchange.outcome) == (status, outcome)
    assert sum(message["type"] == "http.response.start" for message in sent) == (status > 0)


async def test_a_key_with_too_many_requests_is_refused_before_its_body_is_read(state: ServiceState) -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it was refused")

    async def send(message: Message) -> None:
        sent.append(message)

    with state.keyring.place(state.keyring.key_id(b"Bearer one")):
        await make_exchange(stays, send, headers={**KEY, "expect": "100-continue"}, state=state).serve(app)
    assert sent[0]["status"] == 429
    assert json.loads(sent[1]["body"])["error"]["code"] == "queue_full"


async def test_routes_find_their_exchange() -> None:
    from starlette.requests import Request

    exchange = make_exchange()
    assert exchange_of(Request(exchange._scope)) is exchange
