"""Every error code of the contract: status, body, header, nothing of the input, and never inside a 200."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_service import WAIT_S, Live, Stuck, expect

from service.engine.async_engine import AsyncEngine

SECRET = "canary7391"
PROMPT = {"prompt": SECRET}


def send(live: Live, path: str, body: Any = None, method: str = "POST", **options: Any) -> httpx.Response:
    """One request whose body may be broken on purpose."""
    if isinstance(body, (bytes, str)):
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        return live.http.request(method, path, content=body, headers=headers, **options)
    return live.http.request(method, path, json=body, **options)


def check(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The shape of every native refusal."""
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"code", "message", "param", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    assert SECRET not in response.text
    return error


ILLEGAL = {
    "max_new_tokens": 0,
    "min_new_tokens": -1,
    "ignore_eos": 1,
    "temperature": 2.5,
    "top_k": -1,
    "top_p": 0,
    "min_p": 1.5,
    "repetition_penalty": 0,
    "no_repeat_ngram_size": -1,
    "num_beams": 0,
    "num_return_sequences": 0,
    "length_penalty": 11,
    "early_stopping": "soon",
    "frequency_penalty": 3,
    "presence_penalty": -3,
    "stop": "",
    "seed": 2**70,
    "n": 17,
    "logprobs": 21,
    "stream": "yes",
    "timeout_s": 0,
    "overflow": "drop",
    "echo": 1,
}


@pytest.mark.parametrize(("name", "value"), ILLEGAL.items())
def test_a_value_out_of_its_range_is_named_with_the_legal_range(live: Live, name: str, value: Any) -> None:
    error = check(send(live, "/generate", {**PROMPT, name: value}), 422, "invalid_request")
    assert error["param"] == name and "legal: " in error["message"]


@pytest.mark.parametrize("value", [True, "5", 1.5, None, [1], {}])
def test_bodies_are_strict(live: Live, value: Any) -> None:
    error = check(send(live, "/generate", {**PROMPT, "n": value}), 422, "invalid_request")
    assert error["param"] == "n"


@pytest.mark.parametrize("value", [5, [], [5], None, {"a": 1}, [["x"]]])
def test_a_prompt_of_the_wrong_type_is_refused(live: Live, value: Any) -> None:
    assert check(send(live, "/generate", {"prompt": value}), 422, "invalid_request")["param"] == "prompt"


def test_an_unknown_field_is_named_with_the_nearest_one(live: Live) -> None:
    error = check(send(live, "/generate", {**PROMPT, "temprature": 1}), 422, "invalid_request")
    assert error["param"] == "temprature" and "did you mean temperature?" in error["message"]


def test_a_required_field_that_is_misspelt_is_named_before_the_one_that_is_missing(live: Live) -> None:
    error = check(send(live, "/generate", {"promt": "x"}), 422, "invalid_request")
    assert error["param"] == "promt" and "did you mean prompt?" in error["message"]
    error = check(send(live, "/qa", {"context": "x", "questoin": "y"}), 422, "invalid_request")
    assert error["param"] == "questoin" and "did you mean question?" in error["message"]
    assert (
        check(send(live, "/generate", {"zzz": "x"}), 422, "invalid_request")["message"]
        == "prompt is required"
    )


def test_a_name_of_transformers_leads_to_ours(live: Live) -> None:
    error = check(send(live, "/generate", {**PROMPT, "do_sample": True}), 422, "invalid_request")
    assert error["param"] == "do_sample" and "did you mean temperature?" in error["message"]


def test_a_field_of_a_task_that_is_no_string_leads_to_the_list(live: Live) -> None:
    error = check(send(live, "/tasks/generate", {"messages": [{"role": "user"}]}), 422, "invalid_request")
    assert error["param"] == "messages" and "GET /tasks" in error["message"]


def test_fields_of_a_task_in_an_object_of_their_own_lead_to_the_right_form(live: Live) -> None:
    error = check(send(live, "/tasks/generate", {"fields": {"prompt": "x"}}), 422, "invalid_request")
    assert error["param"] == "fields" and "each a string beside the others" in error["message"]


@pytest.mark.parametrize(
    ("name", "value", "meant"), [("temprature", 1, "temperature"), ("do_sample", True, "temperature")]
)
def test_a_misspelt_field_beside_those_of_a_task_is_named_with_the_nearest_one(
    live: Live, name: str, value: Any, meant: str
) -> None:
    error = check(send(live, "/tasks/generate", {**PROMPT, name: value}), 422, "invalid_request")
    assert error["param"] == name and f"did you mean {meant}?" in error["message"]


def test_a_field_of_a_task_that_resembles_one_of_ours_is_not_taken_for_it(live: Live) -> None:
    error = check(send(live, "/tasks/generate", {**PROMPT, "topic": 5}), 422, "invalid_request")
    assert error["param"] == "topic" and error["message"].startswith("topic must be a string")
    assert "did you mean" not in error["message"]


def test_a_field_name_that_is_no_name_is_not_repeated(live: Live) -> None:
    error = check(send(live, "/generate", {**PROMPT, f"<{SECRET}>": 1}), 422, "invalid_request")
    assert error["param"] is None


def test_a_field_name_that_is_too_long_for_one_is_not_repeated(live: Live) -> None:
    error = check(send(live, "/generate", {**PROMPT, SECRET * 7: 1}), 422, "invalid_request")
    assert error["param"] is None


@pytest.mark.parametrize(
    ("path", "missing"), [("/generate", "prompt"), ("/summarize", "text"), ("/qa", "question")]
)
def test_a_missing_field_is_named(live: Live, path: str, missing: str) -> None:
    error = check(send(live, path, {}), 422, "invalid_request")
    assert (error["param"], error["message"]) == (missing, f"{missing} is required")


@pytest.mark.parametrize("body", ["[]", "5", '"x"', "null"])
def test_a_body_that_is_no_object_is_refused(live: Live, body: str) -> None:
    check(send(live, "/generate", body), 422, "invalid_request")


def test_a_missing_body_is_refused(live: Live) -> None:
    check(send(live, "/generate", ""), 422, "invalid_request")


def test_a_lone_surrogate_is_refused_by_field(live: Live) -> None:
    error = check(send(live, "/generate", rb'{"prompt": "\ud800"}'), 422, "invalid_request")
    assert error["param"] == "prompt"


def test_a_text_that_must_be_longer_than_it_may_be_is_refused(live: Live) -> None:
    body = {**PROMPT, "min_new_tokens": 9, "max_new_tokens": 8}
    error = check(send(live, "/generate", body), 422, "invalid_request")
    assert (error["param"], error["message"]) == (
        "min_new_tokens",
        "min_new_tokens must be at most max_new_tokens, which is 8",
    )


def test_a_nul_character_is_text(live: Live) -> None:
    assert send(live, "/generate", {"prompt": "a\0b", "max_new_tokens": 1}).status_code == 200


def test_a_very_long_stop_string_is_refused(live: Live) -> None:
    error = check(send(live, "/generate", {**PROMPT, "stop": "x" * 50_000}), 422, "invalid_request")
    assert error["param"] == "stop"


def test_more_fields_than_there_can_be_are_refused_at_once(live: Live) -> None:
    check(send(live, "/generate", {f"f{i}": 1 for i in range(1000)}), 422, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"prompt": "canary7391"',
        b'{"prompt": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "prompt": "b"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": ' + b"[" * 30_000,
        b'{"seed": ' + b"9" * 20_000 + b"}",
        b"\x00",
        "\ufeff{}".encode("utf-16"),
    ],
)
def test_broken_json_is_a_bad_request(live: Live, body: bytes) -> None:
    check(send(live, "/generate", body), 400, "bad_request")


def test_a_number_beyond_all_floats_is_refused_by_field(live: Live) -> None:
    error = check(send(live, "/generate", b'{"prompt": "a", "temperature": 1e999}'), 422, "invalid_request")
    assert error["param"] == "temperature"


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "",
        "application/x-www-form-urlencoded",
        "json",
        "application/json; charset=latin-1",
        "application/json, text/plain",
    ],
)
def test_a_body_that_does_not_say_json_is_refused(live: Live, content_type: str) -> None:
    response = send(live, "/generate", b"{}", headers={"content-type": content_type})
    check(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    [
        'Application/JSON;charset="UTF-8"',
        "application/vnd.api+json",
        "application/json; charset*=a; charset*0=b",
        f"application/json; charset*{'9' * 5000}=x; ;=;",
    ],
)
def test_json_is_json_whatever_else_the_content_type_says(live: Live, content_type: str) -> None:
    body = b'{"prompt": "a", "max_new_tokens": 1}'
    assert send(live, "/generate", body, headers={"content-type": content_type}).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_refused_as_such(live: Live, encoding: str) -> None:
    response = send(live, "/generate", b"\x1f\x8b", headers={"content-encoding": encoding})
    assert "Content-Encoding" in check(response, 415, "unsupported_media_type")["message"]


def test_a_body_that_says_it_is_not_encoded_is_read(live: Live) -> None:
    body = b'{"prompt": "a", "max_new_tokens": 1}'
    assert send(live, "/generate", body, headers={"content-encoding": "identity"}).status_code == 200


def test_a_byte_order_mark_is_named(live: Live) -> None:
    response = send(live, "/generate", b"\xef\xbb\xbf" + b'{"prompt": "a"}')
    assert "byte order mark" in check(response, 400, "bad_request")["message"]


def test_a_body_that_announces_too_much_is_refused_unread(live: Live) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    reply = live.raw(head + b"Content-Length: 1000000000\r\n\r\n{")
    assert reply.startswith(b"HTTP/1.1 413 ") and b'"body_too_large"' in reply


def test_a_chunked_body_is_counted_as_it_comes(live: Live) -> None:
    def chunks() -> Any:
        for _ in range(100):
            yield b" " * 4096

    response = live.http.post("/generate", content=chunks(), headers={"content-type": "application/json"})
    check(response, 413, "body_too_large")


@pytest.mark.parametrize(
    ("path", "method"), [("/nothing", "POST"), ("/nothing", "GET"), ("/generate/", "POST")]
)
def test_an_unknown_path_is_not_found(live: Live, path: str, method: str) -> None:
    check(send(live, path, {}, method=method), 404, "not_found")


def test_an_unknown_task_is_not_found(live: Live) -> None:
    check(send(live, f"/tasks/{SECRET}", {"text": "a"}), 404, "not_found")


def test_a_wrong_method_names_the_right_ones(live: Live) -> None:
    response = live.http.get("/generate")
    check(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_a_prompt_that_does_not_fit_is_told_the_largest_number_that_does(live: Live) -> None:
    error = check(
        send(live, "/generate", {"prompt": SECRET * 10, "max_new_tokens": 200}), 422, "prompt_too_long"
    )
    assert "156" in error["message"]  # 256 places, 100 of them taken


def test_a_prompt_longer_than_the_window_is_refused_before_a_stream_begins(live: Live) -> None:
    response = send(live, "/generate", {"prompt": SECRET * 100, "stream": True})
    check(response, 422, "prompt_too_long")


def test_a_deadline_ends_a_request_with_504(live: Live) -> None:
    body = {**PROMPT, "max_new_tokens": 240, "ignore_eos": True, "timeout_s": 0.01}
    check(send(live, "/generate", body), 504, "deadline_exceeded")


def test_a_full_queue_says_when_to_come_back(serve: Callable[..., Live], tiny_model: Path) -> None:
    stuck = Stuck(tiny_model)
    live = serve(AsyncEngine(stuck.make, 2, hung_after_s=WAIT_S))
    held = threading.Thread(target=send, args=(live, "/generate", {**PROMPT, "max_new_tokens": 1}))
    held.start()
    expect(lambda: live.num_sequences() == 1, "the work to start")
    response = send(live, "/generate", {**PROMPT, "n": 2})
    stuck.gate.set()
    held.join()
    check(response, 429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1


def test_a_job_that_would_never_have_room_is_not_told_to_come_back(serve: Callable[..., Live]) -> None:
    live = serve(max_running=1, max_waiting=1)
    error = check(send(live, "/generate", {**PROMPT, "n": 3}), 422, "invalid_request")
    assert error["param"] == "n" and "at most 2" in error["message"]
    assert live.http.get("/info").json()["limits"]["max_job_sequences"] == 2


def test_of_several_keys_one_is_told_how_much_it_may_have(serve: Callable[..., Live]) -> None:
    live = serve(max_running=2, max_waiting=6, api_keys="one,two")
    headers = {"authorization": "Bearer one"}
    error = check(send(live, "/generate", {**PROMPT, "n": 7}, headers=headers), 422, "invalid_request")
    assert error["param"] == "n" and "at most 6" in error["message"]


@pytest.fixture(scope="module")
def large(serve: Callable[..., Live]) -> Live:
    """A service that takes bodies of the usual size."""
    return serve()


def test_very_many_stop_token_ids_are_refused_before_each_is_looked_at(large: Live) -> None:
    response = send(large, "/v1/completions", {**PROMPT, "stop_token_ids": [1] * 1025})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "stop_token_ids")
    assert "1024" in error["message"]


@pytest.mark.parametrize("value", [[[]] * 20_001, [{}] * 20_001, {str(i): 0 for i in range(20_001)}])
def test_very_many_parts_are_refused_before_they_are_made(large: Live, value: Any) -> None:
    error = check(send(large, "/summarize", {"text": value}), 400, "bad_request")
    assert "20000 arrays, objects and names" in error["message"]


@pytest.mark.parametrize("text", ['a "[' * 20_001, "{" * 20_001, "\\[" * 20_001, '"' * 30_000 + ":" * 20_001])
def test_what_looks_like_parts_within_a_string_is_not_counted(large: Live, text: str) -> None:
    check(send(large, "/generate", {"prompt": text}), 422, "prompt_too_long")


def test_very_many_short_strings_with_brackets_are_strings(large: Live) -> None:
    error = check(send(large, "/generate", {"prompt": ["["] * 20_001}), 422, "invalid_request")
    assert error["param"] == "prompt" and "256" in error["message"]


class NeverReady:
    """An engine that loads for ever."""

    is_ready = False
    is_alive = True

    async def start(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        return None


def test_while_loading_the_listener_answers_and_work_is_refused(serve: Callable[..., Live]) -> None:
    live = serve(NeverReady(), is_ready=False)
    assert live.http.get("/livez").status_code == 200
    check(live.http.get("/readyz"), 503, "not_ready")
    response = send(live, "/generate", PROMPT)
    check(response, 503, "not_ready")
    assert int(response.headers["retry-after"]) >= 1


def test_while_draining_new_work_is_refused(serve: Callable[..., Live]) -> None:
    live = serve()
    live.state.is_draining = True
    check(live.http.get("/readyz"), 503, "draining")
    response = send(live, "/generate", {**PROMPT, "stream": True})
    check(response, 503, "draining")
    assert int(response.headers["retry-after"]) >= 1


OPENAI = [
    ({"prompt": SECRET * 100}, 400, "context_length_exceeded"),
    ({"prompt": SECRET, "temperature": 3}, 400, "invalid_request"),
    ({"prompt": SECRET, "best_of": 3}, 400, "invalid_request"),
    ({"prompt": SECRET, "suffix": "x"}, 400, "invalid_request"),
    ({"prompt": SECRET, "model": "gpt-4"}, 404, "not_found"),
    ({"prompt": [300_000]}, 400, "invalid_request"),
    ({"prompt": [2**70]}, 400, "invalid_request"),
    ({"prompt": SECRET, "logit_bias": {"x": 1}}, 400, "invalid_request"),
    ({"prompt": SECRET, "logit_bias": {"5": 1, "05": 2}}, 400, "invalid_request"),
    ({"prompt": SECRET, "min_tokens": 17}, 400, "invalid_request"),
    ({"prompt": SECRET, "stream_options": {"include_usage": True}}, 400, "invalid_request"),
    ({"prompt": SECRET, "tools": [1]}, 400, "invalid_request"),
]


@pytest.mark.parametrize(("body", "status", "code"), OPENAI)
def test_the_openai_dialect_refuses_in_its_own_shape(live: Live, body: Any, status: int, code: str) -> None:
    response = send(live, "/v1/completions", body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert SECRET not in response.text


@pytest.mark.parametrize("body", [{"max_tokens": 300}, {"max_tokens": 0}])
def test_the_openai_dialect_calls_fields_by_their_names_there(live: Live, body: Any) -> None:
    error = send(live, "/v1/completions", {"prompt": "a", **body}).json()["error"]
    assert error["param"] in body and "_new_tokens" not in error["message"]


def test_openai_clients_are_told_not_to_retry_a_deadline(serve: Callable[..., Live]) -> None:
    live = serve(request_timeout_s=0.01)
    response = send(live, "/v1/completions", {"prompt": "a", "max_tokens": 250, "ignore_eos": True})
    assert (response.status_code, response.headers["x-should-retry"]) == (504, "false")


def test_a_request_id_is_taken_over(live: Live) -> None:
    response = send(live, "/generate", {}, headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == response.json()["error"]["request_id"] == "mine-1"


def test_a_request_id_that_is_too_long_is_replaced(live: Live) -> None:
    response = live.http.get("/livez", headers={"x-request-id": "a" * 129})
    assert len(response.headers["x-request-id"]) == 32


def test_refusals_leave_nothing_in_the_engine(live: Live) -> None:
    body = {**PROMPT, "max_new_tokens": 240, "ignore_eos": True, "timeout_s": 0.01}
    check(send(live, "/generate", body), 504, "deadline_exceeded")
    after = send(live, "/generate", {**PROMPT, "max_new_tokens": 1})  # the engine hears of it last
    assert after.status_code == 200
    expect(lambda: live.num_sequences() == 0, "an empty engine")
    expect(lambda: live.metric("textgen_kv_blocks_used_ratio") == 0, "the blocks to return")
