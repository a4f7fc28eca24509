"""Native pieces for processors, compiled at run time by numba: no compiler is needed on the user's machine.

Read in this order: `vectors` and `scalars` (SIMD values inside numba code, and single ones), `gemm` (the
hand-made register tile), `rows` (LayerNorm, quantising), `linear_task` and `attend` (one layer's products
and attention on all threads), `atomics` and `threads` (cores in step), `step` and `forward` (a whole forward
pass in one call), `self_check`.
"""
