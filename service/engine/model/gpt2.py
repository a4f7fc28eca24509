"""GPT-2's forward pass over a ragged batch: all tokens of all sequences in one row.

No padding, no batch dimension: matrix products see T rows, and only attention knows which rows belong
together. What multiplies and what attends is handed in by a backend; this file is the architecture and
nothing else. `runner` builds the batch and samples from the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model_store.architecture import Architecture
from model_store.checkpoint import read_checkpoint
from model_store.weights import StoredWeights
from service.engine.model.attention import Attention, ForwardBatch
from service.engine.model.linear import Linear, Packer


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Weights of one layer norm, applied to each row on its own."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise rows of (T, C)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer layer."""

    ln_1: LayerNorm
    qkv: Linear
    attn_out: Linear
    ln_2: LayerNorm
    mlp_in: Linear
    mlp_out: Linear


class GPT2:
    """A loaded GPT-2.

    Args:
        architecture: shape and switches.
        weights: float32 tensors; each is asked for once and not kept, so that they may be read one by one.
        packer: packs the layers for the processor that multiplies by them.
    """

    def __init__(self, architecture: Architecture, weights: Mapping[str, Tensor], packer: Packer) -> None:
        self.architecture = architecture
        self._packer = packer
        self._weights = weights
        self.token_embedding = self._take("wte.weight")
        self.position_embedding = self._take("wpe.weight")
        self.blocks = [self._block(i) for i in range(architecture.n_layer)]
        self.ln_f = self._norm("ln_f")
        head = weights.get("lm_head.weight", self.token_embedding)
        self.head = self._pack(head.t(), None)
        del self._weights

    @classmethod
    def load(cls, folder: Path, packer: Packer) -> GPT2:
        """Read a checkpoint folder.

        Raises:
            UnreadableFile, UnsupportedCheckpoint: naming the file and what is wrong.
        """
        checkpoint = read_checkpoint(folder)
        return cls(checkpoint.architecture, StoredWeights(checkpoint), packer)

    def _take(self, name: str) -> Tensor:
        """A copy on the device."""
        return self._weights[name].to(self._packer.device.name, copy=True)

    def _norm(self, name: str) -> LayerNorm:
        epsilon = self.architecture.layer_norm_epsilon
        return LayerNorm(self._take(f"{name}.weight"), self._take(f"{name}.bias"), epsilon)

    def _pack(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> Linear:
        return self._packer.linear(weight.to(self._packer.device.name), bias, activation)

    def _linear(self, name: str, activation: str | None = None) -> Linear:
        return self._pack(self._weights[f"{name}.weight"], self._take(f"{name}.bias"), activation)

    def _block(self, i: int) -> Block:
        h = f"h.{i}"
        return Block(
            ln_1=self._norm(f"{h}.ln_1"),
            qkv=self._linear(f"{h}.attn.c_attn"),
            attn_out=self._linear(f"{h}.attn.c_proj"),
            ln_2=self._norm(f"{h}.ln_2"),
            mlp_in=self._linear(f"{h}.mlp.c_fc", self.architecture.activation_function),
            mlp_out=self._linear(f"{h}.mlp.c_proj"),
        )

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, attention: Attention) -> Tensor:
        """Compute the wanted logits of one step and write its keys and values into the cache.

        Args:
            batch: the step's tokens and layout.
            attention: the kernel, which owns the cache.

        Returns:
            (R, vocab) float32, a row for each of `batch.logit_rows`.
        """
        x = self.token_embedding[batch.input_ids] + self.position_embedding[batch.positions]  # (T, C)
        for layer, block in enumerate(self.blocks):
            attended = attention(block.qkv(block.ln_1(x)), layer, batch)  # (T, C)
            x = block.attn_out(attended, residual=x)
            x = block.mlp_out(block.mlp_in(block.ln_2(x)), residual=x)
        return self.head(self.ln_f(x[batch.logit_rows]))  # (R, V)
