"""Starts a GPT-2 with the heads that copy: it can repeat a text before its first training step.

Finding the same words elsewhere and copying what follows ("induction") is what questions on a text need, and
what a small model on a small budget learns last. So the first two layers start with it: the residual stream
is split into positions, the token's own code and the code of the token before; heads of layer 0 write the
latter, heads of layer 1 look for places whose preceding token equals the present one and copy the token
there. Training goes on from it freely.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al. 2022,
    "In-context Learning and Induction Heads"; Trockman and Kolter 2023, "Mimetic Initialization of
    Self-Attention Layers".
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

_POSITION_STD = 0.028  # of the sinusoids' entries
_TOKEN_STD = 0.03
_SHARPNESS = 14.0  # logit by which the previous token leads in layer 0
_MATCH = 50.0  # scale of the match in layer 1, before the layer norm shrinks it
_GAINS = (1.5, 8.0)  # of what layers 0 and 1 write
_FASTEST, _SPAN = 2.2, 2000.0  # radians per position of the fastest wave; fastest / slowest


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the width is split; `heads` heads of `size` carry a token's code."""

    width: int
    size: int
    heads: int

    @property
    def positions(self) -> slice:
        return slice(0, self.width - 2 * self.heads * self.size)

    def own(self, head: int) -> slice:
        start = self.positions.stop + head * self.size
        return slice(start, start + self.size)

    def previous(self, head: int) -> slice:
        start = self.positions.stop + (self.heads + head) * self.size
        return slice(start, start + self.size)


def start_copying(model: Any) -> bool:
    """Put the copying heads into a new model.

    Args:
        model: A `GPT2LMHeadModel` fresh from its config; changed in place.

    Returns:
        False, with nothing changed, for a model that is too small: fewer than two layers or four heads.
    """
    config = model.config
    size = config.n_embd // config.n_head
    if config.n_layer < 2 or config.n_head < 4 or size % 2:
        return False
    layout = _Layout(config.n_embd, size, max(1, config.n_head * 3 // 8))
    with torch.no_grad():
        waves = _write_embeddings(model.transformer, layout, config.n_positions)
        rms = _rms(model.transformer)
        for head in range(layout.heads):
            _attend_to_previous(model.transformer.h[0].attn, layout, head, waves, rms)
            _attend_after_equal(model.transformer.h[1].attn, layout, head, rms)
    return True


def _write_embeddings(transformer: Any, layout: _Layout, num_positions: int) -> torch.Tensor:
    """Draw token codes, lay out positions; gives the waves' speeds in radians per position."""
    tokens, positions = transformer.wte.weight, transformer.wpe.weight
    tokens.normal_(0, 0.002)
    for head in range(layout.heads):
        tokens[:, layout.own(head)].normal_(0, _TOKEN_STD)
        tokens[:, layout.previous(head)].normal_(0, _TOKEN_STD / 6)
    count = layout.positions.stop // 2
    waves: torch.Tensor = _FASTEST * _SPAN ** (-torch.arange(count) / max(1, count - 1))
    angles = torch.arange(num_positions)[:, None] * waves  # (positions, waves)
    positions.normal_(0, 0.001)
    positions[:, 0 : 2 * count : 2] += angles.sin() * _POSITION_STD * math.sqrt(2)
    positions[:, 1 : 2 * count : 2] += angles.cos() * _POSITION_STD * math.sqrt(2)
    return waves


def _rms(transformer: Any) -> float:
    """The size of the first layer's input, by which its layer norm divides."""
    count = min(transformer.wte.num_embeddings, transformer.wpe.num_embeddings)
    entries = transformer.wte.weight[-count:] + transformer.wpe.weight[-count:]
    return float(entries.pow(2).mean().sqrt())


def _attend_to_previous(attention: Any, layout: _Layout, head: int, waves: torch.Tensor, rms: float) -> None:
    """Query and key waves that agree one position apart; the value is the token's own code."""
    query, key, value, out = _parts(attention, layout, head)
    count = layout.size // 2
    amplitude = math.sqrt(_SHARPNESS * math.sqrt(layout.size) / count) / (_POSITION_STD * math.sqrt(2) / rms)
    for wave in range(min(count, len(waves))):
        sine, cosine, turn = 2 * wave, 2 * wave + 1, float(waves[wave])
        query[sine, sine] += amplitude
        query[cosine, cosine] += amplitude
        key[sine, sine] += amplitude * math.cos(turn)
        key[cosine, sine] += amplitude * math.sin(turn)
        key[cosine, cosine] += amplitude * math.cos(turn)
        key[sine, cosine] -= amplitude * math.sin(turn)
    value[layout.own(head)] = torch.eye(layout.size)
    out[:, layout.previous(head)] = torch.eye(layout.size) * rms * _GAINS[0]


def _attend_after_equal(attention: Any, layout: _Layout, head: int, rms: float) -> None:
    """The query is the present token's code, the key the code of the token before; the value is copied."""
    query, key, value, out = _parts(attention, layout, head)
    scale = math.sqrt(_MATCH / math.sqrt(layout.size)) / (_TOKEN_STD / rms)
    query[layout.own(head)] += torch.eye(layout.size) * scale
    key[layout.previous(head)] += torch.eye(layout.size) * scale
    value[layout.own(head)] = torch.eye(layout.size)
    out[:, layout.own(head)] = torch.eye(layout.size) * rms * _GAINS[1]


def _parts(attention: Any, layout: _Layout, head: int) -> tuple[torch.Tensor, ...]:
    """Views of a head's weights, nearly emptied: query, key, value (width, size), output (size, width)."""
    columns = slice(head * layout.size, (head + 1) * layout.size)
    joined = attention.c_attn.weight.view(layout.width, 3, layout.width)
    query, key, value = (joined[:, part, columns] for part in range(3))
    out = attention.c_proj.weight[columns]
    query.mul_(0.3)
    key.mul_(0.3)
    value.zero_()
    out.zero_()
    return query, key, value, out
