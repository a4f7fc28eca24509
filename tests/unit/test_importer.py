"""Import: checkpoints that become entries, and those that are refused, by name."""

import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from store_models import gpt2_state, write_byte_level, write_checkpoint, write_config

from model_store.errors import GoldenMismatch, StoreError, UnsupportedCheckpoint
from model_store.golden import check_golden
from model_store.importer import Provenance, import_model
from model_store.manifest import GoldenPrompt
from model_store.store import Store, resolve
from model_store.task import Task


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", builtin=None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "Tiny Story")


def no_golden(folder: Path, tasks: Mapping[str, Task]) -> tuple[GoldenPrompt, ...]:
    """Skip what needs transformers, where a test is about something else."""
    return ()


def refuse(store: Store, source: Path | str) -> str:
    """Import what must be refused; give the message. The store must stay empty."""
    with pytest.raises(StoreError) as caught:
        import_model(store, str(source), make_golden=no_golden)
    assert store.listings() == []
    return str(caught.value)


def as_pickle(checkpoint: Path) -> Path:
    """Turn a checkpoint's weights into pytorch_model.bin, with what old checkpoints carry along."""
    state = load_file(checkpoint / "model.safetensors")
    state["lm_head.weight"] = state["transformer.wte.weight"]
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    torch.save(state, checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    return checkpoint


def as_shards(checkpoint: Path) -> Path:
    """Split a checkpoint's weights over two files and an index."""
    state = load_file(checkpoint / "model.safetensors")
    names = sorted(state)
    files = {"model-1.safetensors": names[:10], "model-2.safetensors": names[10:]}
    for file, keys in files.items():
        save_file({key: state[key] for key in keys}, checkpoint / file, {"format": "pt"})
    weight_map = {key: file for file, keys in files.items() for key in keys}
    write_index(checkpoint, weight_map)
    (checkpoint / "model.safetensors").unlink()
    return checkpoint


def write_index(checkpoint: Path, weight_map: object) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


# --- what is imported


def test_the_name_is_made_of_the_folders(store: Store, checkpoint: Path) -> None:
    assert import_model(store, str(checkpoint), make_golden=no_golden).label == "tiny-story@1"


def test_the_parameters_are_counted(store: Store, checkpoint: Path) -> None:
    expected = sum(tensor.numel() for tensor in gpt2_state().values())
    assert import_model(store, str(checkpoint), make_golden=no_golden).manifest.parameters == expected


def test_the_tokenizers_files_come_along(store: Store, checkpoint: Path) -> None:
    entry = import_model(store, str(checkpoint), make_golden=no_golden)
    assert set(entry.manifest.files) == {"config.json", "model.safetensors", "tokenizer.json"}


def test_files_that_are_no_part_of_a_model_stay_behind(store: Store, checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").write_bytes(b"x")
    assert "optimizer.pt" not in import_model(store, str(checkpoint), make_golden=no_golden).manifest.files


def test_a_pickle_becomes_safetensors_with_the_same_weights(store: Store, checkpoint: Path) -> None:
    expected = load_file(checkpoint / "model.safetensors")
    entry = import_model(store, str(as_pickle(checkpoint)), make_golden=no_golden)
    found = load_file(entry.path / "model.safetensors")
    assert found.keys() == expected.keys() and all(found[key].equal(expected[key]) for key in found)


def test_no_pickle_enters_the_store(store: Store, checkpoint: Path) -> None:
    entry = import_model(store, str(as_pickle(checkpoint)), make_golden=no_golden)
    assert "pytorch_model.bin" not in entry.manifest.files


def test_shards_are_kept_with_their_index(store: Store, checkpoint: Path) -> None:
    entry = import_model(store, str(as_shards(checkpoint)), make_golden=no_golden)
    shards = {"model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"}
    assert shards <= entry.manifest.files.keys()


def test_the_checkpoints_own_manifest_is_taken_over(store: Store, checkpoint: Path) -> None:
    task = {"name": "reply", "kind": "generate", "template": "{text}\nReply:"}
    draft = {"tasks": [task], "evaluation": {"f1": 31}, "command": "textgen model finetune", "license": "MIT"}
    (checkpoint / "manifest.json").write_text(json.dumps(draft))
    manifest = import_model(store, str(checkpoint), make_golden=no_golden).manifest
    found = (list(manifest.tasks), manifest.evaluation, manifest.command, manifest.license)
    assert found == (["generate", "reply"], {"f1": 31}, "textgen model finetune", "MIT")


def test_tasks_given_at_import_replace_the_default_ones(store: Store, checkpoint: Path) -> None:
    provenance = Provenance(tasks={"reply": Task(name="reply", kind="generate", template="{text}")})
    entry = import_model(store, str(checkpoint), provenance=provenance, make_golden=no_golden)
    assert list(entry.tasks) == ["generate", "reply"]


def test_links_into_the_hubs_cache_are_followed(store: Store, checkpoint: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "abc", tmp_path / "cache" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in checkpoint.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert import_model(store, str(snapshot), name="cached", make_golden=no_golden).label == "cached@1"


# --- golden prompts


def test_an_imported_model_passes_its_golden_prompts(store: Store, checkpoint: Path) -> None:
    entry = import_model(store, str(checkpoint))
    check_golden(entry)
    assert len(entry.manifest.golden) == 6  # three for every model, one for each task


def test_other_weights_fail_the_golden_prompts(store: Store, checkpoint: Path) -> None:
    entry = import_model(store, str(checkpoint))
    state = load_file(entry.path / "model.safetensors")
    state["transformer.h.1.mlp.c_proj.weight"] *= -1
    save_file(state, entry.path / "model.safetensors", {"format": "pt"})
    with pytest.raises(GoldenMismatch, match="golden prompt 0 no longer gives"):
        check_golden(entry)


# --- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not supported"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "'GPT2ForSequenceClassification' is not"),
        ({"add_cross_attention": True}, "add_cross_attention is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"n_layer": 3}, "no tensor h.2.ln_1.weight"),
        ({"n_embd": 32}, "tensor wte.weight has the shape (320, 16); config.json makes it (320, 32)"),
        ({"vocab_size": 100}, "tensor wte.weight has the shape (320, 16)"),
        ({"tie_word_embeddings": False}, "no tensor lm_head.weight"),
        ({"n_embd": "wide"}, "config.json: n_embd must be"),
    ],
)
def test_a_config_that_does_not_fit_is_named(
    store: Store, checkpoint: Path, change: dict[str, object], message: str
) -> None:
    write_config(checkpoint, **change)
    assert message in refuse(store, checkpoint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "no weights: none of model.safetensors"),
        ("tokenizer.json", "has no tokenizer.json"),
    ],
)
def test_a_missing_file_is_named(store: Store, checkpoint: Path, name: str, message: str) -> None:
    (checkpoint / name).unlink()
    assert message in refuse(store, checkpoint)


def test_weights_of_another_framework_are_named(store: Store, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "tf_model.h5")
    assert "are in tf_model.h5; make safetensors with transformers 4" in refuse(store, checkpoint)


def test_a_truncated_weights_file_is_named(store: Store, checkpoint: Path) -> None:
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[:-100])
    assert "model.safetensors is broken" in refuse(store, checkpoint)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(store: Store, checkpoint: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (checkpoint / "ran",)  # type: ignore[return-value]

    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}))
    message = refuse(store, checkpoint)
    assert "pytorch_model.bin was not loaded" in message and not (checkpoint / "ran").exists()


@pytest.mark.parametrize(
    "more",
    [
        {"step": 5},
        {1: torch.ones(1)},
        {"a\ud800": torch.ones(1)},
        {"sparse": torch.eye(3).to_sparse()},
        {"nowhere": torch.ones(1, device="meta")},
    ],
    ids=lambda more: ascii(next(iter(more))),
)
def test_a_pickle_with_more_than_plain_tensors_is_refused(
    store: Store, checkpoint: Path, more: dict[object, object]
) -> None:
    state: dict[object, object] = {**load_file(checkpoint / "model.safetensors")}
    (checkpoint / "model.safetensors").unlink()
    torch.save({**state, **more}, checkpoint / "pytorch_model.bin")
    assert "not a plain dictionary of tensors" in refuse(store, checkpoint)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
def test_a_pickle_of_quantized_tensors_is_refused(store: Store, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    quantized = torch.quantize_per_tensor(torch.ones(1), 0.1, 0, torch.qint8)
    torch.save({"a": quantized}, checkpoint / "pytorch_model.bin")
    assert "not a plain dictionary of tensors" in refuse(store, checkpoint)


def test_tensors_of_a_pickle_that_share_their_memory_are_all_there(store: Store, checkpoint: Path) -> None:
    """As in a model whose layers are one."""
    path = as_pickle(checkpoint) / "pytorch_model.bin"
    state = torch.load(path)
    state["transformer.h.0.ln_2.weight"] = state["transformer.h.0.ln_1.weight"]
    torch.save(state, path)
    entry = import_model(store, str(checkpoint), make_golden=no_golden)
    found = load_file(entry.path / "model.safetensors")
    assert found.keys() == state.keys() - {"lm_head.weight", "transformer.h.0.attn.bias"}
    assert found["transformer.h.0.ln_2.weight"].equal(found["transformer.h.0.ln_1.weight"])


def test_what_is_wrong_with_a_pickle_s_tensors_names_the_checkpoint(store: Store, checkpoint: Path) -> None:
    state = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    state["transformer.ln_f.weight"] = torch.ones(5)
    torch.save(state, checkpoint / "pytorch_model.bin")
    message = refuse(store, checkpoint)
    assert message.startswith(str(checkpoint)) and "ln_f.weight has the shape (5,)" in message


def test_a_pickle_that_links_to_itself_is_named(store: Store, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").symlink_to("pytorch_model.bin")
    assert f"{checkpoint / 'pytorch_model.bin'} leads nowhere" in refuse(store, checkpoint)


@pytest.mark.parametrize(
    "name", ["../weights.safetensors", "/etc/passwd", "a/b.safetensors", "a\0.safetensors", "x.bin", 5]
)
def test_an_index_cannot_name_files_elsewhere(store: Store, checkpoint: Path, name: object) -> None:
    write_index(as_shards(checkpoint), {"transformer.wte.weight": name})
    assert "model.safetensors.index.json names a file" in refuse(store, checkpoint)


def test_a_shard_that_is_missing_is_named(store: Store, checkpoint: Path) -> None:
    (as_shards(checkpoint) / "model-2.safetensors").unlink()
    assert "model-2.safetensors is missing" in refuse(store, checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_link_out_of_the_folder_is_refused(
    store: Store, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    (checkpoint / name).rename(tmp_path / name)
    (checkpoint / name).symlink_to(tmp_path / name)
    assert f"{name} is a link that leads out" in refuse(store, checkpoint)


def test_a_tokenizer_larger_than_the_model_is_refused(store: Store, checkpoint: Path) -> None:
    write_config(checkpoint, vocab_size=200)
    state = gpt2_state(vocab_size=200)
    save_file(state, checkpoint / "model.safetensors", {"format": "pt"})
    assert "the tokenizer has 315 tokens, the model embeddings for 200" in refuse(store, checkpoint)


@pytest.mark.parametrize("source", ["/no/such/folder", "./none", "a b c", "one/two/three"])
def test_a_folder_that_is_not_there_is_named(store: Store, source: str) -> None:
    assert refuse(store, source) == f"there is no folder {source}"


def test_a_file_is_answered_with_its_folder(store: Store, checkpoint: Path) -> None:
    said = refuse(store, checkpoint / "model.safetensors")
    assert said.endswith(f"is a file; name the folder that holds the model, {checkpoint}")


def test_a_model_of_the_hub_is_called_by_its_name_and_not_by_a_commit(store: Store, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--me--GPT2-News" / "snapshots" / "b2ffc1f8a8d0"
    write_checkpoint(snapshot)
    assert import_model(store, str(snapshot), make_golden=no_golden).name == "gpt2-news"
    assert resolve(str(snapshot), store.root).name == "gpt2-news"


def test_a_wrong_manifest_names_its_key(store: Store, checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text('{"data": "a book"}')
    assert refuse(store, checkpoint) == "manifest.json: data: must be a list"


def test_a_hub_id_offline_gives_one_line(tmp_path: Path) -> None:
    code = (
        f"import os; os.environ['HF_HUB_OFFLINE'] = '1'; os.environ['HF_HOME'] = '{tmp_path}'\n"
        "from model_store.importer import find_source\n"
        "from model_store.errors import ImportRefused\n"
        "try: find_source('hf:owner/name')\n"
        "except ImportRefused as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (
        done.stdout.startswith("owner/name cannot be fetched from the hub: ") and done.stdout.count("\n") == 1
    )


def test_an_import_is_refused_where_the_version_is_there(store: Store, checkpoint: Path) -> None:
    import_model(store, str(checkpoint), version="1", make_golden=no_golden)
    with pytest.raises(StoreError, match="versions never change"):
        import_model(store, str(checkpoint), version="1", make_golden=no_golden)


def test_a_refused_checkpoint_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    folder = write_byte_level(tmp_path / "half")
    write_config(folder)
    with pytest.raises(UnsupportedCheckpoint):
        import_model(store, str(folder), make_golden=no_golden)
    assert [path.name for path in store.root.iterdir()] == [".lock"]
