"""received = finished + in flight, at every scrape, whatever clients do."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable

from live_service import Live, expect


def visit(live: Live, chance: random.Random) -> None:
    """One client: a good request, a bad one, or one that leaves."""
    kind = chance.choice(["good", "stream", "bad", "late", "leave", "lost"])
    body = {"prompt": "go", "max_new_tokens": 30, "stream": kind in ("stream", "leave")}
    if kind == "bad":
        live.post("/generate", {"prompt": 5})
    elif kind == "lost":
        live.post("/nothing", {})
    elif kind == "leave":
        data = json.dumps(body).encode()
        with live.connect() as sock:
            fields = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
            sock.sendall(f"POST /generate HTTP/1.1\r\n{fields}\r\n\r\n".encode() + data)
            sock.recv(chance.choice([1, 400]))
    else:
        live.post("/generate", {**body, "timeout_s": 0.01 if kind == "late" else 60})


def balance(text: str) -> float:
    """received - finished - in flight of one scrape."""
    signs = {
        "textgen_requests_received_total": 1,
        "textgen_requests_finished_total": -1,
        "textgen_requests_in_flight": -1,
    }
    lines = [line for line in text.splitlines() if line.split("{")[0] in signs]
    return sum(signs[line.split("{")[0]] * float(line.rsplit(" ", 1)[1]) for line in lines)


def test_counts_balance_at_every_scrape(serve: Callable[..., Live]) -> None:
    live = serve()
    chances = [random.Random(seed) for seed in range(6)]
    clients = [
        threading.Thread(target=lambda chance=chance: [visit(live, chance) for _ in range(10)])
        for chance in chances
    ]
    for client in clients:
        client.start()
    scrapes = []
    while any(client.is_alive() for client in clients):
        scrapes.append(balance(live.http.get("/metrics").text))
    assert set(scrapes) == {0.0}


def test_operations_are_not_counted(live: Live) -> None:
    before = live.metric("textgen_requests_received_total")
    for path in ("/livez", "/readyz", "/metrics", "/info", "/tasks", "/v1/models"):
        live.http.get(path)
    assert live.metric("textgen_requests_received_total") == before


def test_paths_without_a_route_share_one_label(live: Live) -> None:
    before = live.metric("textgen_requests_finished_total", endpoint="other", outcome="not_found")
    live.post("/made-up-by-a-client", {})
    expect(
        lambda: (
            live.metric("textgen_requests_finished_total", endpoint="other", outcome="not_found")
            == before + 1
        )
    )
    assert "made-up" not in live.http.get("/metrics").text
