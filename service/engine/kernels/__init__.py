"""Native pieces for processors, compiled at run time by numba: no compiler is needed on the user's machine.

Read in this order: `vectors` (SIMD values inside numba code), `gemm` (the one hand-made register tile),
`rows` (LayerNorm, quantising), `threads` (two cores in step), `step` (a whole forward pass in one call).
"""
