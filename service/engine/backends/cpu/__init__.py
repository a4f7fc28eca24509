"""The processor's kernels, compiled at the first start by numba: the user's machine needs no C compiler.

`native` holds the kernels themselves; it is imported by their compiler only, in a process of its own. Here is
what calls them. Read in this order: `records` (what both sides say to each other by), `processor`, `kernels`
and `cache` (compiled, kept, loaded), `threads` and `pool`, `linear`, `attention`, `forward` (a whole forward
pass in one call), `draw`, `self_check`, `backend`.
"""
