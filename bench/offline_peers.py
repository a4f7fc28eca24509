"""Libraries without a server, for `peers --offline`: each decodes one greedy batch, in a process of its own.

    python bench/offline_peers.py NAME CHECKPOINT WORK 1,8,32

prints `{"batch": tokens/s}` as its last line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from peer_servers import Places

NEW_TOKENS = 64
Decode = Callable[[list[list[int]]], int]  # prompts' ids -> number of tokens generated


def run_library(name: str, places: Places, batches: list[int]) -> dict[str, Any]:
    """Run one library in the peers' interpreter; a reason in place of figures when it cannot."""
    text = ",".join(map(str, batches))
    command = [str(places.python), __file__, name, str(places.checkpoint), str(places.work), text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        return {"left out": (done.stderr.strip().splitlines() or ["?"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def prompts_ids(checkpoint: Path, number: int) -> list[list[int]]:
    """64 tokens for each row of a batch."""
    from tokenizers import Tokenizer

    from service.bench.prompts import Shape, generated

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    asks = generated([Shape(64, 1)], seed=7)
    return [tokenizer.encode(next(asks).prompt).ids[:64] for _ in range(number)]


def transformers_generate(precision: str) -> Callable[[Path, Path], Decode]:
    """`generate` on a whole batch."""

    def make(checkpoint: Path, work: Path) -> Decode:
        import torch
        from transformers import GPT2LMHeadModel

        model = GPT2LMHeadModel.from_pretrained(checkpoint, dtype=getattr(torch, precision)).eval()

        def decode(prompts: list[list[int]]) -> int:
            ids = torch.tensor(prompts)
            options = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
            with torch.inference_mode():
                out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            return int((out.shape[1] - ids.shape[1]) * out.shape[0])

        return decode

    return make


def transformers_continuous(checkpoint: Path, work: Path) -> Decode:
    """`generate_batch`: paged attention and continuous batching."""
    import torch
    from transformers import GenerationConfig, GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(
        checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=-1, pad_token_id=0)

    def decode(prompts: list[list[int]]) -> int:
        outputs = model.generate_batch(inputs=prompts, generation_config=config)
        return sum(len(output.generated_tokens) for output in outputs.values())

    return decode


def ctranslate2_generate(kind: str) -> Callable[[Path, Path], Decode]:
    """CTranslate2's generator."""

    def make(checkpoint: Path, work: Path) -> Decode:
        import ctranslate2
        from tokenizers import Tokenizer

        folder = work / f"ctranslate2-{checkpoint.name}"
        if not folder.exists():
            ctranslate2.converters.TransformersConverter(str(checkpoint)).convert(str(folder))
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        generator = ctranslate2.Generator(str(folder), compute_type=kind, intra_threads=2)

        def decode(prompts: list[list[int]]) -> int:
            tokens = [[tokenizer.id_to_token(i) for i in ids] for ids in prompts]
            results = generator.generate_batch(
                tokens,
                max_length=NEW_TOKENS,
                min_length=NEW_TOKENS,
                include_prompt_in_result=False,
                max_batch_size=len(prompts),
            )
            return sum(len(result.sequences_ids[0]) for result in results)

        return decode

    return make


LIBRARIES: dict[str, Callable[[Path, Path], Decode]] = {
    "transformers-generate-bfloat16": transformers_generate("bfloat16"),
    "transformers-generate-float32": transformers_generate("float32"),
    "transformers-continuous-bfloat16": transformers_continuous,
    "ctranslate2-int8": ctranslate2_generate("int8"),
    "ctranslate2-float32": ctranslate2_generate("float32"),
}


def main() -> None:
    """Measure one library at each batch size: once to warm up, then the median of three."""
    name, checkpoint, work, batches = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    decode = LIBRARIES[name](checkpoint, work)
    found = {}
    for batch in map(int, batches.split(",")):
        prompts = prompts_ids(checkpoint, batch)
        decode(prompts)
        rates = []
        for _ in range(3):
            began_at = time.perf_counter()
            number = decode(prompts)
            rates.append(number / (time.perf_counter() - began_at))
        found[str(batch)] = round(sorted(rates)[1], 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
