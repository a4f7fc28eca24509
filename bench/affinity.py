"""Share of prompt tokens that come from the prefix cache, with several questions on each document.

    python bench/affinity.py http://127.0.0.1:8000             each request alone
    python bench/affinity.py http://127.0.0.1:8000 --session   with the document's hash as X-Session-ID

The questions on one document come one after the other from one client; eight clients ask at a time,
as people with documents before them do. `--salt` makes documents that the service has not seen.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from concurrent.futures import ThreadPoolExecutor

import httpx

NAMES = ["Ada", "Bruno", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas"]
PLACES = ["the harbour", "the mill", "the old bridge", "the market", "the lighthouse", "the forest"]
THINGS = ["a lantern", "a letter", "two oranges", "a silver key", "an umbrella", "a map"]


def document(number: int, salt: int) -> str:
    """About 1,500 characters of small events, different for each number and salt."""
    draw = random.Random(f"{salt}:{number}")
    sentences = [
        f"{draw.choice(NAMES)} went to {draw.choice(PLACES)} on day {draw.randrange(1000)} and found "
        f"{draw.choice(THINGS)}."
        for _ in range(20)
    ]
    return " ".join(sentences)


def ask(url: str, text: str, question: str, session: bool) -> tuple[int, int]:
    """Prompt tokens of one question, and how many of them came from the cache."""
    headers = {"X-Session-ID": hashlib.sha256(text.encode()).hexdigest()[:16]} if session else {}
    body = {"prompt": f"{text}\n\n{question}\n", "max_new_tokens": 16, "temperature": 0}
    reply = httpx.post(f"{url}/generate", json=body, headers=headers, timeout=300)
    usage = reply.raise_for_status().json()["usage"]
    return usage["prompt_tokens"], usage["cached_tokens"]


def main() -> None:
    """Ask, then print the share."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--session", action="store_true", help="send X-Session-ID")
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--questions", type=int, default=6)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--salt", type=int, default=0, help="other documents")
    args = parser.parse_args()

    def read(number: int) -> list[tuple[int, int]]:
        text = document(number, args.salt)
        names = random.Random(number).sample(NAMES, args.questions)
        return [ask(args.url, text, f"What did {name} find?", args.session) for name in names]

    with ThreadPoolExecutor(args.clients) as pool:
        counts = [count for each in pool.map(read, range(args.documents)) for count in each]
    prompt, cached = (sum(part) for part in zip(*counts, strict=True))
    print(f"{cached / prompt:.1%} of {prompt} prompt tokens in {len(counts)} requests came from the cache")


if __name__ == "__main__":
    main()
