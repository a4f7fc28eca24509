"""The values of a checkpoint's tensors, and the model that transformers makes of them. Imports torch.

See `model_store/checkpoint.py` for what is read and how it is checked.
"""

from typing import Any

import torch
from safetensors import safe_open

from model_store.checkpoint import Checkpoint
from model_store.errors import UnsupportedCheckpoint


def read_weights(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Read all tensors, float32 on the CPU, by GPT-2's names without prefix.

    Raises:
        UnsupportedCheckpoint: A value is not finite; names the tensor.
    """
    weights = {}
    for path in {tensor.file for tensor in checkpoint.tensors.values()}:
        with safe_open(path, framework="pt") as file:
            for name, tensor in checkpoint.tensors.items():
                if tensor.file == path:
                    weights[name] = file.get_tensor(tensor.name).float()
    for name, values in weights.items():
        if not all(map(torch.isfinite, torch.aminmax(values))):  # thirty times faster than each value
            raise UnsupportedCheckpoint(
                f"{checkpoint.tensors[name].file}: {name} holds values that are not finite"
            )
    return weights


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
