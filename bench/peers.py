"""Compares this service with other servers on one machine: same weights, same client, same prompts, in turns.

    python bench/peers.py --work /tmp/peers --llama-server PATH --vllm PATH --peers-python PATH

Every server is started once and stopped (SIGSTOP) while another is measured; rounds go A B C A B C, figures
are medians over rounds. Streamed, closed loop; `--load` says what is asked (64 words in and 64 tokens out,
greedy, unless it says otherwise; several with commas), `--shape 774m` asks a larger model. What is not
installed is left out by name. Speculation is off for ours: random weights repeat themselves, which would
flatter it. `--offline` adds libraries without a server, decoding one batch. The last line is JSON.
`peer_servers` says how each server is started, `offline_peers` how each library is driven.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

from checkpoint import SHAPES, make_checkpoint  # noqa: E402
from offline_peers import LIBRARIES, run_library  # noqa: E402
from peer_servers import PeerServer, Places, known_peers  # noqa: E402

from service.bench.dialect import Dialect  # noqa: E402
from service.bench.measure import Plan, measure, run_async  # noqa: E402
from service.bench.prompts import Shape  # noqa: E402
from service.bench.report import table  # noqa: E402
from service.bench.summary import Objective, Summary  # noqa: E402

Results = dict[str, dict[int, list[Summary]]]  # of one load
# output tokens/s against the best peer, TTFT p50 against the best peer, by clients
MARKS = {
    "bf16": {1: (1.5, 1.0), 8: (1.8, 0.5), 32: (2.0, 0.5)},
    "int8": {1: (1.8, 1.0), 8: (2.5, 0.5), 32: (3.0, 1 / 3)},
}


_TOP_P = {"temperature": 0.8, "top_p": 0.95, "top_k": 0}  # llama.cpp cuts at 40 unless told
_PENALTY = {"top_k": 50, "repetition_penalty": 1.2, "repeat_penalty": 1.2}  # llama.cpp's name for it
# what is asked: words in and tokens out, and fields beside them
LOADS: dict[str, tuple[Shape, dict[str, float]]] = {
    "greedy": (Shape(64, 64), {}),
    "top_p": (Shape(64, 64), _TOP_P),
    "penalty": (Shape(64, 64), _TOP_P | _PENALTY),
    "long": (Shape(500, 32), {}),
}


def plan_for(server: PeerServer, load: str, clients: int, seed: int, requests: int) -> Plan:
    """A closed loop against one server; every round has its own prompts."""
    shape, fields = LOADS[load]
    extra = dict(server.peer.extra) | fields
    return Plan(
        dialect=Dialect(
            f"{server.url}/v1/completions", is_native=False, model=server.peer.model, extra=extra
        ),
        shapes=[shape],
        prompts=None,
        shared_words=0,
        seed=seed,
        clients=[clients],
        rates=[],
        requests=requests,
        duration_s=120.0,
        timeout_s=120.0,
        objective=Objective(),
        api_key="",
    )


def measure_in_turns(servers: list[PeerServer], load: str, arguments: argparse.Namespace) -> Results:
    """Rounds over all servers and client counts; the others stand still meanwhile."""
    results: Results = defaultdict(lambda: defaultdict(list))
    for clients in arguments.clients:
        for round_number in range(arguments.rounds):
            for server in servers:
                requests = max(4, clients * arguments.waves)
                server.resume()
                seed = 100_000 * [*LOADS].index(load) + 1000 * clients + round_number  # nobody has it cached
                plan = plan_for(server, load, clients, seed, requests)
                summary = run_async(measure(plan))[0]
                server.pause()
                results[server.peer.name][clients].append(summary)
                _say(server.peer.name, summary)
    return results


def _say(name: str, summary: Summary) -> None:
    rate, wait = summary.output_tokens_per_s, summary.ttft_ms.get("p50", 0)
    print(f"{name} {summary.clients} clients: {rate:.1f} tokens/s, TTFT {wait:.0f} ms {summary.errors or ''}")


def medians(results: Results) -> dict[str, dict[int, dict[str, float]]]:
    """Median tokens/s and TTFT p50 for each server and number of clients."""
    return {
        name: {
            clients: {
                "output_tokens_per_s": statistics.median(s.output_tokens_per_s for s in runs),
                "ttft_p50_ms": statistics.median(s.ttft_ms.get("p50", float("inf")) for s in runs),
                "itl_p99_ms": statistics.median(s.itl_ms.get("p99", float("inf")) for s in runs),
            }
            for clients, runs in by_clients.items()
        }
        for name, by_clients in results.items()
    }


def ratios(found: dict[str, dict[int, dict[str, float]]], servers: list[PeerServer]) -> list[dict[str, Any]]:
    """Ours against the best peer: bf16 against bf16 peers, int8 against all."""
    precision = {server.peer.name: server.peer.precision for server in servers}
    rows = []
    for kind, marks in MARKS.items():
        ours = f"textgen-{kind}"
        others = [
            n for n in found if not n.startswith("textgen") and (kind == "int8" or precision[n] == kind)
        ]
        for clients, figures in found.get(ours, {}).items():
            if others:
                rows.append(_ratio(ours, figures, {n: found[n][clients] for n in others}, clients, marks))
    return rows


def _ratio(
    ours: str,
    figures: dict[str, float],
    others: dict[str, dict[str, float]],
    clients: int,
    marks: dict[int, tuple[float, float]],
) -> dict[str, Any]:
    fastest = max(others, key=lambda name: others[name]["output_tokens_per_s"])
    soonest = min(others, key=lambda name: others[name]["ttft_p50_ms"])
    speed_mark, wait_mark = marks.get(clients, (1.0, 1.0))
    return {
        "ours": ours,
        "clients": clients,
        "fastest_peer": fastest,
        "speed_ratio": round(figures["output_tokens_per_s"] / others[fastest]["output_tokens_per_s"], 3),
        "speed_mark": speed_mark,
        "soonest_peer": soonest,
        "ttft_ratio": round(figures["ttft_p50_ms"] / others[soonest]["ttft_p50_ms"], 3),
        "ttft_mark": round(wait_mark, 3),
    }


def show(found: dict[str, dict[int, dict[str, float]]], compared: list[dict[str, Any]]) -> None:
    """Two tables: figures, and ratios with their marks."""
    counts = sorted({clients for by_clients in found.values() for clients in by_clients})
    rows = [["tokens/s (TTFT p50 ms)", *(f"{c} clients" for c in counts)]]
    for name, by_clients in found.items():
        cells = [by_clients[c] for c in counts]
        rows.append([name, *(f"{c['output_tokens_per_s']:.0f} ({c['ttft_p50_ms']:.0f})" for c in cells)])
    print(table(rows))
    rows = [["ours", "clients", "speed", "mark", "against", "TTFT", "mark", "against"]]
    for r in compared:
        speed = [f"{r['speed_ratio']:.2f}x", f"{r['speed_mark']:g}x", r["fastest_peer"]]
        wait = [f"{r['ttft_ratio']:.2f}x", f"{r['ttft_mark']:g}x", r["soonest_peer"]]
        rows.append([r["ours"], str(r["clients"]), *speed, *wait])
    print(table(rows))


def start_servers(places: Places, arguments: argparse.Namespace) -> list[PeerServer]:
    """Start what is installed and asked for, each paused once it is ready and warm."""
    servers: list[PeerServer] = []
    for peer in known_peers(places, arguments.speculation):
        wanted = not arguments.only or any(part in peer.name for part in arguments.only.split(","))
        if not wanted or peer.missing:
            print(f"left out: {peer.name}: {peer.missing or 'not asked for'}")
            continue
        server = PeerServer(peer, places.work)
        try:
            server.start()
        except RuntimeError as error:
            print(f"left out: {peer.name}: {error}")
            continue
        print(f"{peer.name} is ready after {server.seconds_to_ready:.1f} s")
        servers.append(server)
        run_async(measure(plan_for(server, "greedy", 8, 1, 16)))  # warm
        server.pause()
    return servers


def main() -> None:
    """The command."""
    arguments = parse()
    arguments.clients = [int(part) for part in arguments.clients.split(",")]
    places = Places(
        work=arguments.work,
        checkpoint=make_checkpoint(arguments.work / arguments.shape, arguments.shape),
        python=arguments.peers_python,
        llama_server=arguments.llama_server,
        vllm=arguments.vllm,
        threads=arguments.threads,
        sequences=max(arguments.clients),
    )
    offline = {}
    for name in LIBRARIES if arguments.offline else ():
        offline[name] = run_library(name, places, arguments.clients)
        print(f"{name}: {offline[name]}")
    servers = start_servers(places, arguments)
    loads = {}
    try:
        for load in arguments.load:
            found = medians(measure_in_turns(servers, load, arguments))
            compared = ratios(found, servers)
            print(f"\n{load}, {arguments.shape}")
            show(found, compared)
            loads[load] = {"served": found, "ratios": compared}
    finally:
        for server in servers:
            server.stop()
    ready = {server.peer.name: round(server.seconds_to_ready, 1) for server in servers}
    print(json.dumps({"loads": loads, "offline": offline, "seconds_to_ready": ready}))


def _loads(text: str) -> list[str]:
    loads = text.split(",")
    if unknown := set(loads) - set(LOADS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: of {', '.join(LOADS)}")
    return loads


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and logs, kept")
    parser.add_argument("--shape", choices=SHAPES, default="124m")
    parser.add_argument("--load", type=_loads, default=["greedy"], help=", ".join(LOADS) + "; with commas")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--waves", type=int, default=2, help="requests of each client in a round")
    parser.add_argument("--only", default="", help="parts of names, with commas")
    parser.add_argument("--threads", type=int, default=2, help="of each peer; ours chooses itself")
    parser.add_argument("--speculation", action="store_true", help="leave ours on")
    parser.add_argument("--offline", action="store_true", help="also libraries without a server")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server binary")
    parser.add_argument("--vllm", type=Path, help="vLLM's command")
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=Path(sys.executable),
        help="an interpreter with gguf, ctranslate2, llama-cpp-python[server], torch, transformers",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
