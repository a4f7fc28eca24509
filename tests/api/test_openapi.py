"""The OpenAPI page tells the truth: examples work, refusals are documented, replies have the shapes shown."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from live_service import Live, events

from service.api.reply_models import GenerateReply, QaReply, SummarizeReply, TaskList
from service.metrics import ENDPOINTS, endpoint_of

ROUTES = [
    ("/generate", GenerateReply, {"prompt": "a", "logprobs": 2, "max_new_tokens": 2}),
    ("/summarize", SummarizeReply, {"text": "A sentence. Another one.", "max_new_tokens": 4}),
    ("/qa", QaReply, {"question": "Who?", "context": "A sentence. Another one.", "num_answers": 2}),
]


@pytest.fixture(scope="module")
def page(live: Live) -> Any:
    return live.http.get("/openapi.json").json()


def _is_for_a_large_vocabulary(body: Any) -> bool:
    """The tiny model has 257 tokens only."""
    return isinstance(body.get("prompt"), list) and isinstance(body["prompt"][0], list)


@pytest.mark.parametrize("path", ["/generate", "/summarize", "/qa", "/v1/completions"])
def test_the_examples_of_every_body_are_served(live: Live, page: Any, path: str) -> None:
    schema = page["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    examples = page["components"]["schemas"][schema.rsplit("/", 1)[1]]["examples"]
    bodies = [body for body in examples if not _is_for_a_large_vocabulary(body)]
    assert bodies and all(live.post(path, body).status_code == 200 for body in bodies)


@pytest.mark.parametrize("path", ["/generate", "/summarize", "/qa", "/tasks/{name}"])
def test_every_refusal_is_documented(page: Any, path: str) -> None:
    documented = set(page["paths"][path]["post"]["responses"])
    assert {"400", "401", "404", "408", "413", "415", "422", "429", "431", "500", "503", "504"} <= documented


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models/{name}"])
def test_the_openai_dialect_promises_no_status_it_never_gives(page: Any, path: str) -> None:
    assert all("422" not in operation["responses"] for operation in page["paths"][path].values())


def test_every_route_that_takes_work_is_counted_by_its_name(page: Any) -> None:
    """Of one that `metrics.ENDPOINTS` does not name, no body would be read and no model known."""
    posted = [path for path, operations in page["paths"].items() if "post" in operations]
    assert {path: endpoint_of(path) for path in posted} == {path: path for path in posted}
    assert set(posted) == set(ENDPOINTS) - {"other"}


def test_every_reference_of_the_page_leads_somewhere(page: Any) -> None:
    found = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(page)))
    assert found == found & set(page["components"]["schemas"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": "a", "max_new_tokens": 2}),
        ("/summarize", {"text": "A sentence. " * 60, "max_new_tokens": 4}),
        ("/summarize", {"text": "A sentence. " * 60, "max_new_tokens": 4, "timeout_s": 1e-6}),
        ("/qa", {"question": "Who?", "context": "A sentence. Another one."}),
    ],
)
def test_the_events_of_a_stream_are_documented(live: Live, page: Any, path: str, body: Any) -> None:
    answer = page["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    known = answer["schema"]["properties"]["event"]["enum"]
    assert {kind for kind, _ in events(live.post(path, {**body, "stream": True}).text)} <= set(known)


@pytest.mark.parametrize(("path", "shape", "body"), ROUTES)
def test_replies_have_the_documented_shape(live: Live, path: str, shape: Any, body: Any) -> None:
    assert shape.model_validate(live.post(path, body).json())


def test_the_list_of_tasks_has_the_documented_shape(live: Live) -> None:
    assert TaskList.model_validate(live.http.get("/tasks").json()).tasks


def test_info_says_what_is_served(live: Live) -> None:
    found = live.http.get("/info").json()
    assert found["model"]["name"] == "tiny" and found["limits"]["n_positions"] == 256
    assert {"device", "precision", "kernels"} <= set(found["model"])
    assert found["model"]["num_threads"] == 1  # as the fixture sets it
