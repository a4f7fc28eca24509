"""The values of a checkpoint's tensors, and the model that transformers makes of them. Imports torch.

See `model_store/checkpoint.py` for what is read and how it is checked.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import safe_open

from model_store.checkpoint import Checkpoint
from model_store.errors import UnsupportedCheckpoint


class StoredWeights(Mapping[str, torch.Tensor]):
    """A checkpoint's tensors, float32 on the CPU, by GPT-2's names without prefix; read when asked for.

    A tensor may be a view of its whole file, which stays in memory as long as it is held: copy what is kept.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises:
            KeyError: The checkpoint has none of this name.
            UnsupportedCheckpoint: A value is not finite; names the tensor.
        """
        stored = self._checkpoint.tensors[name]
        with safe_open(stored.file, framework="pt") as file:
            values: torch.Tensor = file.get_tensor(stored.name).float()
        if not all(map(torch.isfinite, torch.aminmax(values))):  # thirty times faster than each value
            raise UnsupportedCheckpoint(f"{stored.file}: {name} holds values that are not finite")
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.tensors)

    def __len__(self) -> int:
        return len(self._checkpoint.tensors)


def read_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Read all tensors, float32 on the CPU, by GPT-2's names without prefix.

    Raises:
        UnsupportedCheckpoint: A value is not finite; names the tensor.
    """
    return dict(StoredWeights(checkpoint))


def load_gpt2(checkpoint: Checkpoint, model_class: Any = None) -> Any:
    """Make transformers' model of a checkpoint, float32 on the CPU, ready to evaluate.

    Args:
        checkpoint: Its files.
        model_class: `GPT2LMHeadModel` (None) or a child of it.

    Raises:
        UnsupportedCheckpoint: A value is not finite, or a setting that only training needs is not legal.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    values = {**checkpoint.config, "layer_norm_epsilon": checkpoint.architecture.layer_norm_epsilon}
    weights = read_weights(checkpoint)
    state = {name if name == "lm_head.weight" else f"transformer.{name}": weights[name] for name in weights}
    try:
        config = GPT2Config.from_dict(values)
        model = (model_class or GPT2LMHeadModel).from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32
        )
    except Exception as error:  # its validation's own
        reason = " ".join(str(error).split())
        raise UnsupportedCheckpoint(f"{checkpoint.folder}/config.json: {reason}") from error
    model.config.name_or_path = model.name_or_path = str(checkpoint.folder)
    return model.eval()
