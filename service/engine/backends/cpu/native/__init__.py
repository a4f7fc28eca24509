"""The kernels themselves, in numba and LLVM's own language. `compiler` turns them into machine code, in a
process of its own; nothing else imports this package, so a service at work holds no compiler.

Read in this order: `functions` (how a kernel is written), `vectors` and `scalars` (SIMD values inside numba
code, and single ones), `gemm` (the hand-made register tile), `rows` (LayerNorm, quantising), `linear_task`
and `attend` (one layer's products and attention on all threads), `atomics` and `team` (cores in step), `step`
(a whole forward pass in one call), `draw_task` and `cut`, `compiler`.
"""
