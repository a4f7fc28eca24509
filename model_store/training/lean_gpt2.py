"""GPT-2 for training: transformers' model with a cheaper loss, a good start, and the optimizers.

The checkpoint is an ordinary `GPT2LMHeadModel`. No loop and no data here; see `train.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutput

from model_store.recipes.copying_init import start_copying
from model_store.recipes.muon import MuonAndAdamW

_IGNORED = -100
_STRENGTH = 20.0  # how much a nat of departure from the base counts beside one of the new labels' loss
_SHORT = 192  # tokens in a row up to which plain attention is faster on a processor than torch's fused one


class LeanGPT2(GPT2LMHeadModel):  # type: ignore[misc]
    """`GPT2LMHeadModel` whose forward computes the loss, and logits only where a label asks for them.

    With answers as the only targets, nine tenths of the vocabulary's logits are never needed; on a small
    model they are a third of the work.
    """

    _base: tuple[Any, ...] = ()

    def stay_near(self, base: "LeanGPT2") -> None:
        """Learn old rows from what another model makes of them, and not from their labels.

        Source: Li and Hoiem 2016, "Learning without Forgetting".
        """
        self._base = (base.eval().requires_grad_(False),)  # in a tuple it is no part of this module

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        is_old: torch.Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Give the mean loss over the labels that are not -100.

        Args:
            input_ids: (rows, block).
            labels: The same shape; the token at each place, or -100 where it does not count.
            position_ids: (rows, block), the positions of the tokens. Where one is not the one before plus 1,
                another example begins, which does not see those before it in its row.
            weights: (rows, block), how much each label counts; None: all the same.
            num_items_in_batch: What to divide by, when rows of several devices or steps are summed.
            is_old: (rows,), which ones `stay_near` is about; new and old rows count by their numbers.
        """
        hidden = self._hidden(input_ids, position_ids)
        if is_old is None or not self._base:
            return CausalLMOutput(loss=self._learned(hidden, labels, weights, num_items_in_batch))
        assert position_ids is not None  # packed rows have them
        is_new = ~is_old
        loss = hidden.new_zeros(())
        if is_new.any():
            mine = None if weights is None else weights[is_new]
            loss = is_new.float().mean() * self._learned(hidden[is_new], labels[is_new], mine, None)
        if is_old.any():
            drift = self._drift(hidden[is_old], input_ids[is_old], position_ids[is_old], labels[is_old])
            loss = loss + is_old.float().mean() * _STRENGTH * drift
        count = (labels[:, 1:] != _IGNORED).sum()
        return CausalLMOutput(loss=loss if num_items_in_batch is None else loss * count / num_items_in_batch)

    def _learned(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """The loss on labels; arguments as in `forward`, `hidden` (rows, block, width)."""
        wanted = labels[:, 1:].reshape(-1)  # (rows * (block - 1),)
        hidden = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        is_target = wanted != _IGNORED
        if weights is not None:
            counts = weights[:, 1:].reshape(-1)
            mean = self.head_loss(hidden, self.lm_head.weight, wanted, counts) / counts.sum()
            return mean * (is_target.sum() / (num_items_in_batch or is_target.sum()))
        if is_target.float().mean() < 0.5:
            hidden, wanted = hidden[is_target], wanted[is_target]
        total = self.head_loss(hidden, self.lm_head.weight, wanted)
        count = is_target.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return total / count

    def _drift(
        self,
        hidden: torch.Tensor,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """How far what is said of the tokens (rows, block) is from what the base says, in nats.

        The mean over all of them, and beside it that over each row's labels, be they few or many.
        """
        (base,) = self._base
        base.to(hidden.device)
        is_inner = position_ids[:, 1:] == position_ids[:, :-1] + 1  # no first token of an example, no padding
        theirs = base.log_probabilities(input_ids, position_ids, is_inner)
        mine = self._log_probabilities(hidden, is_inner)
        each = F.kl_div(mine, theirs, log_target=True, reduction="none").sum(-1)  # (inner,)
        is_label = is_inner & (labels[:, 1:] != _IGNORED)
        parts = is_label / is_label.sum(1, keepdim=True).clamp(min=1) / len(labels)
        return each.mean() + (each * parts[is_inner]).sum()

    @torch.no_grad()
    def log_probabilities(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, is_wanted: torch.Tensor
    ) -> torch.Tensor:
        """Say how likely each token of the vocabulary is, (wanted, vocabulary), in nats.

        Args:
            input_ids: (rows, block).
            position_ids: The same shape, as in `forward`.
            is_wanted: (rows, block - 1), whether what stands at the place after is asked for.
        """
        return self._log_probabilities(self._hidden(input_ids, position_ids), is_wanted)

    def _hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
        """Hidden states (rows, block, width); arguments as in `forward`."""
        # with a cache, transformers would not look for the examples' borders
        output = self.transformer(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _log_probabilities(self, hidden: torch.Tensor, is_wanted: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden[:, :-1][is_wanted], self.lm_head.weight).float().log_softmax(-1)

    head_loss: Callable[..., torch.Tensor]

    def suit(self, block: int) -> None:
        """Compute the same in the way that is fastest for rows of `block` tokens on a processor.

        Where it was measured, a step of the 7M model on 8 rows of 64 tokens takes half the time.
        """
        if not torch.accelerator.is_available():
            self.set_attn_implementation("eager" if block <= _SHORT else "sdpa")
        if self.config.activation_function == "gelu_new":  # transformers writes it out in seven operations
            for layer in self.transformer.h:
                layer.mlp.act = torch.nn.GELU(approximate="tanh")

    def compile_parts(self) -> None:
        """Compile the body and the loss; the state dict stays as it is. The first step takes a minute
        longer."""
        self.transformer.compile()
        self.head_loss = torch.compile(_head_loss, dynamic=None)


def _head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, wanted: torch.Tensor, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Summed cross-entropy of the tokens `wanted` (n,) after the states `hidden` (n, width), times `counts`
    (n,)."""
    logits = F.linear(hidden, weight).float()
    if counts is None:
        return F.cross_entropy(logits, wanted, ignore_index=_IGNORED, reduction="sum")
    return (F.cross_entropy(logits, wanted, ignore_index=_IGNORED, reduction="none") * counts).sum()


LeanGPT2.head_loss = staticmethod(_head_loss)


def new_model(config: GPT2Config, seed: int) -> LeanGPT2:
    """Make a model to be trained from nothing, with the heads of `recipes/copying_init.py`."""
    torch.manual_seed(seed)
    model = LeanGPT2(config)
    start_copying(model)
    return model


def optimizer_for(
    model: torch.nn.Module, name: str, rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Make the optimizer.

    Args:
        model: Parameters that need no gradient are left out.
        name: `adamw`, or `muon`: Muon for the matrices of the layers and AdamW for the rest.
        rate: The peak learning rate.
        weight_decay: Applies to matrices; vectors (biases, norms) have none.
    """
    named = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
    if name == "muon":
        inner = [p for key, p in named if p.ndim == 2 and ".h." in key]
        slow = [p for key, p in named if "wpe" in key]
        outer = [p for key, p in named if not (p.ndim == 2 and ".h." in key) and "wpe" not in key]
        return MuonAndAdamW(inner, outer, slow, rate, weight_decay)
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
