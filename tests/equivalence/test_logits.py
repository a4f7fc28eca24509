"""The forward pass against transformers' GPT2LMHeadModel, in float32, over every switch of its config."""

from __future__ import annotations

import json
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import WIDE, checkpoint, draw_model, loaded_gpt2, reference_logits

from model_store.architecture import ACTIVATIONS
from model_store.checkpoint import read_checkpoint
from model_store.errors import UnsupportedCheckpoint
from model_store.weights import read_weights
from service.engine.backends.torch.attention import ReferenceAttention
from service.engine.backends.torch.backend import TorchBackend
from service.engine.batch import Batch, Scheduled
from service.engine.devices import DEVICES
from service.engine.model.attention import KVCache
from service.engine.model.gpt2 import GPT2
from service.engine.model.runner import Forward, ModelRunner
from service.engine.sequence import Job, SamplingParams, Sequence, SequenceRequest

TOLERANCE = 1e-4
EXACT = TorchBackend("float32", is_exact=True)
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    **{f"activation {name}": {"activation_function": name} for name in ACTIVATIONS},
    "unscaled attention": {"scale_attn_weights": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "reordered and upcast": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "narrow inner layer": {"n_inner": 40},
    "wide inner layer": {"n_inner": 200},
    "large epsilon": {"layer_norm_epsilon": 0.3},
    "untied head": {"tie_word_embeddings": False},
    "one head": {"n_head": 1},
    "many heads": {"n_head": 16},
    "five layers": {"n_layer": 5},
    "odd vocabulary": {"vocab_size": 261},
}
# each with what it is when it is off, and whether the weights stay the same
FLIPPED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "activation_function": ({"activation_function": "gelu_new"}, {"activation_function": "relu"}),
    "scale_attn_weights": ({"scale_attn_weights": True}, {"scale_attn_weights": False}),
    "scale_attn_by_inverse_layer_idx": (
        {"scale_attn_by_inverse_layer_idx": False},
        {"scale_attn_by_inverse_layer_idx": True},
    ),
    "layer_norm_epsilon": ({"layer_norm_epsilon": 1e-5}, {"layer_norm_epsilon": 1e-2}),
    "n_head": ({"n_head": 4}, {"n_head": 8}),
}


def ids_of(count: int, vocabulary: int = 259, seed: int = 0) -> list[int]:
    """Random token ids."""
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def forward_of(model: GPT2, *, is_exact: bool = True) -> Forward:
    """The model's forward pass with the reference attention and an empty cache."""
    a = model.architecture
    cache = KVCache.allocate(a.n_layer, 16, a.n_head, 16, a.head_dim, torch.float32, DEVICES["cpu"])
    return partial(model.forward, attention=ReferenceAttention(cache, a.attention_scales, is_exact=is_exact))


def logits_in_chunks(
    model: GPT2, ids: list[int], chunks: list[int], *, is_exact: bool = True
) -> torch.Tensor:
    """Logits at every position, computed in forward passes of so many tokens each, through a paged cache."""
    forward = forward_of(model, is_exact=is_exact)
    runner = ModelRunner(forward, 16, [0])
    s = Sequence(Job(), 0, SequenceRequest(tuple(ids), SamplingParams()), 0.0)
    s.block_table = [5, 2, 9, 0, 14, 7, 11, 3][: -(-len(ids) // 16)]  # in no order
    found = []
    for count in chunks:
        found.append(forward(runner._lay_out(Batch((Scheduled(s, count),)), [count], list(range(count)))))
        s.num_computed_tokens += count
    assert s.num_computed_tokens == len(ids), "chunks do not cover the prompt"
    return torch.cat(found)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference."""
    return float((a - b).abs().max())


@pytest.mark.parametrize("switch", SWITCHES)
def test_logits_equal_those_of_transformers(switch: str) -> None:
    folder, ids = checkpoint(1, **SWITCHES[switch]), ids_of(70)
    assert (
        distance(logits_in_chunks(loaded_gpt2(folder, EXACT), ids, [70]), reference_logits(folder, ids))
        <= TOLERANCE
    )


@pytest.mark.parametrize("switch", SWITCHES)
def test_logits_are_spread_widely_enough_to_show_differences(switch: str) -> None:
    assert float(reference_logits(checkpoint(1, **SWITCHES[switch]), ids_of(70)).std()) >= 1


@pytest.mark.parametrize("switch", FLIPPED)
def test_flipping_a_switch_is_seen(switch: str, tmp_path: Path) -> None:
    off, on = FLIPPED[switch]
    folder, ids = checkpoint(1, **off), ids_of(70)
    flipped = copy_of(folder, tmp_path, on)
    ours = logits_in_chunks(GPT2.load(flipped, EXACT), ids, [70])
    assert distance(ours, reference_logits(folder, ids)) > 10 * TOLERANCE


@pytest.mark.parametrize("switch", FLIPPED)
def test_a_flipped_switch_is_followed(switch: str, tmp_path: Path) -> None:
    folder, ids = copy_of(checkpoint(1, **FLIPPED[switch][0]), tmp_path, FLIPPED[switch][1]), ids_of(70)
    assert (
        distance(logits_in_chunks(GPT2.load(folder, EXACT), ids, [70]), reference_logits(folder, ids))
        <= TOLERANCE
    )


def test_another_head_is_seen() -> None:
    folder, ids = checkpoint(1, tie_word_embeddings=False), ids_of(70)
    model = GPT2.load(folder, EXACT)
    model.head = model._pack(model.token_embedding.t(), None)
    assert distance(logits_in_chunks(model, ids, [70]), reference_logits(folder, ids)) > 10 * TOLERANCE


def test_a_wider_inner_layer_changes_the_weights_shape(tmp_path: Path) -> None:
    folder = copy_of(checkpoint(1), tmp_path, {"n_inner": 200})
    with pytest.raises(UnsupportedCheckpoint, match="mlp"):
        GPT2.load(folder, EXACT)


# ---- the same however it is computed --------------------------------------------------------------------

CHUNKS = [[70], [1] * 70, [64, 1, 1, 1, 1, 1, 1], [16, 16, 16, 16, 6], [15, 17, 1, 31, 6], [33, 37]]


@pytest.mark.parametrize("chunks", CHUNKS[1:], ids=str)
def test_chunks_and_single_steps_give_the_same_bits_as_one_pass(chunks: list[int]) -> None:
    model, ids = loaded_gpt2(checkpoint(1), EXACT), ids_of(70)
    assert torch.equal(logits_in_chunks(model, ids, chunks), logits_in_chunks(model, ids, [70]))


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_the_quick_reference_agrees_with_transformers_too(chunks: list[int]) -> None:
    folder, ids = checkpoint(1), ids_of(70)
    found = logits_in_chunks(loaded_gpt2(folder, TorchBackend("float32")), ids, chunks, is_exact=False)
    assert distance(found, reference_logits(folder, ids)) <= TOLERANCE


@pytest.mark.parametrize("chunks", [[96], [95, 1], [80, 16]], ids=str)
def test_the_very_last_position_is_right(chunks: list[int]) -> None:
    folder, ids = checkpoint(1), ids_of(96)
    found = logits_in_chunks(loaded_gpt2(folder, EXACT), ids, chunks)
    assert distance(found[-1], reference_logits(folder, ids)[-1]) <= TOLERANCE


@pytest.mark.parametrize("chunks", [[40], [33, 7], [1] * 40], ids=str)
def test_a_model_as_wide_as_gpt2_agrees_with_transformers(chunks: list[int]) -> None:
    folder, ids = checkpoint(7, **WIDE), ids_of(40, 1031)
    found = logits_in_chunks(loaded_gpt2(folder, EXACT), ids, chunks)
    assert distance(found, reference_logits(folder, ids)) <= TOLERANCE


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_step_without_wanted_logits_runs(precision: Any) -> None:
    model = loaded_gpt2(checkpoint(1), TorchBackend(precision, is_exact=True))
    runner = ModelRunner(forward_of(model), 16, [0])
    s = Sequence(Job(), 0, SequenceRequest((1, 2, 3), SamplingParams()), 0.0)
    s.block_table = [0]
    [output] = runner.execute(Batch((Scheduled(s, 2),)))
    assert output.token_ids == ()


def test_a_pass_that_fails_leaves_no_constraint_that_is_still_being_asked() -> None:
    """Its sequence may be tried again at once, and a constraint is asked by one thread at a time."""
    is_asked, may_go_on, asked = threading.Event(), threading.Event(), []

    def allowed(output_ids: Any) -> list[int]:
        is_asked.set()
        may_go_on.wait(60)
        asked.append([*output_ids])
        return [1]

    def fail(batch: object) -> Any:
        is_asked.wait(60)
        threading.Timer(0.05, may_go_on.set).start()
        raise MemoryError("no")

    s = Sequence(Job(), 0, SequenceRequest((1, 2), SamplingParams(allowed_next=allowed)), 0.0)
    s.block_table = [0]
    with pytest.raises(MemoryError):
        ModelRunner(fail, 16, [0]).execute(Batch((Scheduled(s, 2),)))
    assert asked == [[]]


# ---- how a checkpoint may be stored ---------------------------------------------------------------------


def copy_of(folder: Path, target: Path, config: dict[str, Any]) -> Path:
    """A copy of a checkpoint with changed settings."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    known = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**known, **config}))
    return target


def rewrite(folder: Path, target: Path, change: Any) -> Path:
    """A copy of a checkpoint with changed tensors."""
    copy_of(folder, target, {})
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    return target


def same_weights(a: Path, b: Path) -> bool:
    """Whether two checkpoints are read to the same tensors."""
    one, two = read_weights(read_checkpoint(a)), read_weights(read_checkpoint(b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_names_without_the_prefix_are_read(tmp_path: Path) -> None:
    folder = checkpoint(1)
    bare = rewrite(folder, tmp_path, lambda t: {n.removeprefix("transformer."): v for n, v in t.items()})
    assert same_weights(folder, bare)


def test_causal_mask_buffers_are_ignored(tmp_path: Path) -> None:
    folder = checkpoint(1)
    mask = {f"h.0.attn.{n}": torch.ones(1, 1, 96, 96) for n in ("bias", "masked_bias")}
    old = rewrite(folder, tmp_path, lambda t: {**t, **mask})
    assert same_weights(folder, old)


def test_a_copy_of_the_tied_head_is_ignored(tmp_path: Path) -> None:
    folder = checkpoint(1)
    wordy = rewrite(folder, tmp_path, lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"].clone()})
    assert same_weights(folder, wordy)


def test_half_precision_tensors_become_float32(tmp_path: Path) -> None:
    folder = rewrite(checkpoint(1), tmp_path, lambda t: {n: v.half() for n, v in t.items()})
    assert {v.dtype for v in read_weights(read_checkpoint(folder)).values()} == {torch.float32}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = value
        return tensors

    folder = rewrite(checkpoint(1), tmp_path, spoil)
    with pytest.raises(
        UnsupportedCheckpoint, match=r"h\.1\.mlp\.c_fc\.weight holds values that are not finite"
    ):
        read_weights(read_checkpoint(folder))


def test_shards_are_read(tmp_path: Path) -> None:
    draw_model(1).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 and same_weights(checkpoint(1), tmp_path)


def test_an_untied_head_is_read() -> None:
    folder = checkpoint(1, tie_word_embeddings=False)
    assert "lm_head.weight" in read_weights(read_checkpoint(folder))


# ---- what is refused, by name ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt_neo"},
        {"add_cross_attention": True},
        {"activation_function": "prelu"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"n_head": 5},
        {"n_layer": 0},
        {"n_positions": "many"},
        {"vocab_size": True},
        {"activation_function": ["gelu"]},
        {"layer_norm_epsilon": "tiny"},
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], tmp_path: Path) -> None:
    folder = copy_of(checkpoint(1), tmp_path, config)
    with pytest.raises(UnsupportedCheckpoint, match=next(iter(config)).split("_per")[0]):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("transformer.wpe.weight", torch.ones(2, 2), "wpe"),
        ("transformer.ln_f.bias", torch.full((32,), torch.nan), "ln_f.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    name: str, tensor: torch.Tensor, message: str, tmp_path: Path
) -> None:
    folder = rewrite(checkpoint(1), tmp_path, lambda t: {**t, name: tensor})
    with pytest.raises(UnsupportedCheckpoint, match=message):
        GPT2.load(folder, EXACT)


def test_tensors_that_gpt2_does_not_have_are_left_out_and_named(tmp_path: Path) -> None:
    extra = {"v_head.summary.weight": torch.ones(1, 32), "h.0.crossattention.q_attn.weight": torch.ones(1)}
    folder = rewrite(checkpoint(1), tmp_path, lambda t: {**t, **extra})
    (line,) = read_checkpoint(folder).warnings
    assert line.endswith(": h.0.crossattention.q_attn.weight, v_head.summary.weight")
    assert same_weights(checkpoint(1), folder)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = rewrite(checkpoint(1), tmp_path, lambda t: {n: v for n, v in t.items() if "wpe" not in n})
    with pytest.raises(UnsupportedCheckpoint, match=r"wpe\.weight"):
        GPT2.load(folder, EXACT)


def test_an_untied_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = copy_of(checkpoint(1), tmp_path, {"tie_word_embeddings": False})
    with pytest.raises(UnsupportedCheckpoint, match=r"lm_head\.weight"):
        GPT2.load(folder, EXACT)


def test_a_folder_without_safetensors_says_how_to_convert(tmp_path: Path) -> None:
    folder = copy_of(checkpoint(1), tmp_path, {})
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedCheckpoint, match="textgen model import"):
        GPT2.load(folder, EXACT)
