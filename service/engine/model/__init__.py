"""GPT-2's arithmetic in torch, whatever processor computes: `gpt2` (the forward pass over a ragged batch),
`attention` (the batch, the paged cache, what a kernel must do), `logits_processors` and `sampler` (logits to
ids), `random_draws`, `runner` (a batch in, next ids out), `weights` (a checkpoint's tensors).
"""
