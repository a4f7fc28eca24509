"""A PEFT adapter's folder becomes a whole model at import, and says what to do where it cannot."""

import json
from pathlib import Path

import peft
import pytest
import torch
from store_models import write_checkpoint
from transformers import GPT2Config, GPT2LMHeadModel

from model_store.errors import ImportRefused
from model_store.importer import import_model
from model_store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it

PROMPT = torch.tensor([[5, 17, 23, 4, 9]])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", builtin=None)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tiny")


def adapter(base: Path, folder: Path) -> tuple[Path, torch.Tensor]:
    """Write a LoRA adapter of drawn weights; give its folder and the logits that base and adapter give."""
    torch.manual_seed(1)
    model = GPT2LMHeadModel.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM", fan_in_fan_out=True
    )
    tuned = peft.get_peft_model(model, config).eval()
    for name, values in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(values, std=0.2)
    tuned.save_pretrained(folder)
    with torch.inference_mode():
        return folder, tuned(PROMPT).logits


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()(PROMPT).logits


def test_an_adapter_is_merged_onto_its_base(store: Store, base: Path, tmp_path: Path) -> None:
    folder, expected = adapter(base, tmp_path / "tuned")
    entry = import_model(store, str(folder))
    assert entry.label == "tuned@1"
    torch.testing.assert_close(logits(entry.path), expected, atol=1e-5, rtol=1e-5)
    assert (logits(base) - expected).abs().max() > 0.01
    assert any(line.startswith("base model: tiny, an adapter (LORA)") for line in entry.manifest.data)


def test_the_base_may_be_named_and_lie_in_the_store(store: Store, base: Path, tmp_path: Path) -> None:
    folder, expected = adapter(base, tmp_path / "tuned")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "/gone/with/the/machine"
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    import_model(store, str(base), "tiny")
    with pytest.raises(ImportRefused, match=r"its base /gone/with/the/machine is not to be had.*--base"):
        import_model(store, str(folder))
    entry = import_model(store, str(folder), base="tiny@1")
    torch.testing.assert_close(logits(entry.path), expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_another_model_is_refused(store: Store, base: Path, tmp_path: Path) -> None:
    folder, _ = adapter(base, tmp_path / "tuned")
    other = write_checkpoint(tmp_path / "other")
    config = GPT2Config(vocab_size=320, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(other)
    with pytest.raises(ImportRefused, match="does not fit other"):
        import_model(store, str(folder), base=f"{other}/")


def test_an_adapter_that_cannot_be_merged_is_refused(store: Store, base: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(base)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "prompts")
    with pytest.raises(ImportRefused, match="PROMPT_TUNING cannot be merged"):
        import_model(store, str(tmp_path / "prompts"))


def test_without_peft_the_error_says_what_to_do(
    store: Store, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = adapter(base, tmp_path / "tuned")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportRefused, match=r"pip install 'textgen-service\[train\]'.*merge_and_unload"):
        import_model(store, str(folder))


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "is not JSON"), ("[]", "must hold a JSON object"), ("[" * 99_999, "is nested")],
)
def test_a_broken_adapter_is_named(store: Store, tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ImportRefused, match=rf"adapter_config.json {problem}"):
        import_model(store, str(tmp_path / "a"))
