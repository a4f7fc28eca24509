"""The forward pass on a GPU: the same architecture as `gpt2.GPT2.forward`, with fewer and larger kernels.

The residual stream stays float32; what goes into a product is in the precision of the weights. The
kernels are in `rows` and `attention`; `graphs` replays decode steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.engine.backends.cuda.linear import CudaLinear
from service.engine.backends.cuda.rows import add_norm
from service.engine.model.attention import Attention, ForwardBatch
from service.engine.model.linear import Linear

if TYPE_CHECKING:
    from service.engine.model.gpt2 import GPT2, LayerNorm


class CudaForward:
    """`model.forward(batch, attention)` for a model with `backend="cuda"`.

    Args:
        model: its layers are `CudaLinear`.
        attention: owns the cache.
    """

    def __init__(self, model: GPT2, attention: Attention) -> None:
        self._model, self._attention = model, attention
        self._last = model.architecture.n_positions - 1
        self._dtype = _cuda(model.head).dtype

    @torch.inference_mode()
    def __call__(self, batch: ForwardBatch) -> Tensor:
        """Compute the wanted logits of one step; see `GPT2.forward`."""
        model, blocks = self._model, self._model.blocks
        positions = batch.positions.clamp(max=self._last)  # a row past the end is never looked up
        x = model.token_embedding[batch.input_ids] + model.position_embedding[positions]  # (T, C) float32
        normed = self._norm(x, None, None, blocks[0].ln_1)  # (T, C)
        for layer, block in enumerate(blocks):
            attended = self._attention(_cuda(block.qkv).with_bias(normed), layer, batch)  # (T, C)
            normed = self._norm(x, attended, block.attn_out, block.ln_2)
            inner = _cuda(block.mlp_in).with_bias(normed)  # (T, 4C)
            following = blocks[layer + 1].ln_1 if layer + 1 < len(blocks) else model.ln_f
            normed = self._norm(x, inner, block.mlp_out, following)
        return _cuda(model.head).product(normed[batch.logit_rows]).float()  # (R, V)

    def _norm(self, x: Tensor, rows: Tensor | None, layer: Linear | None, norm: LayerNorm) -> Tensor:
        """Add the layer's product of `rows` to x, in place, and normalise."""
        added = bias = None
        if rows is not None and layer is not None:
            added, bias = _cuda(layer).product(rows), _cuda(layer).bias
        return add_norm(x, added, bias, (norm.weight, norm.bias, norm.epsilon), self._dtype)


def _cuda(layer: Linear) -> CudaLinear:
    assert isinstance(layer, CudaLinear), "the model was not packed for the GPU"
    return layer
