"""CUDA kernels in Triton, and decoding by replay of CUDA graphs; imported only where a GPU computes.

Triton comes with CUDA builds of torch and is no dependency of its own. Start with `attend` (attention through
the paged cache) and `rows` (what happens between matrix products); `forward` puts them together, `graphs`
replays decode steps, `self_check` compares everything with torch at start-up.
"""
