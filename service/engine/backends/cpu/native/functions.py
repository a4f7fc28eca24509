# mypy: disable-error-code="untyped-decorator"
"""How functions of this package become native ones.

`@native` marks what other native code calls; it is compiled into its callers. `@kernel` marks what Python, or
native code through `scalars.invoker`, calls by its address: parameters are int64 (addresses, counts), nothing
is returned. Neither raises: a division by zero gives what the processor gives.
"""

from __future__ import annotations

from collections.abc import Callable

from numba import njit

Function = Callable[..., None]

native = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
KERNELS: dict[str, Function] = {}


def kernel(function: Function) -> Function:
    """Let `compiler` find this function by its name."""
    KERNELS[function.__name__] = function
    return function
