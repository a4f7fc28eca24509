"""One wing per processor behind the protocol of `engine.backend`: `torch` (the reference, on any device),
`cpu`, `cuda`. A wing enters no other wing, and nobody but `choose` enters one.

`kernel_check` is what their self-checks share. A wing of kernels is imported when it is made: the processor's
compile, and a GPU's need Triton.
"""

from __future__ import annotations

from collections.abc import Callable

from service.engine.backend import Backend, Declined, FastBackend
from service.engine.backends.torch.backend import TorchBackend
from service.engine.config import BackendName, DeviceName, EngineConfig


def _cpu(config: EngineConfig) -> FastBackend:
    from service.engine.backends.cpu.cache import has_kernels

    with config.step("loading kernels" if has_kernels() else "compiling kernels (first start only)"):
        from service.engine.backends.cpu.backend import CpuBackend

        return CpuBackend.for_config(config)


def _cuda(config: EngineConfig) -> FastBackend:
    from service.engine.backends.cuda.backend import CudaBackend

    return CudaBackend.for_config(config)


_FAST: dict[DeviceName, Callable[[EngineConfig], FastBackend]] = {"cpu": _cpu, "cuda": _cuda}
_ALL: dict[BackendName, Callable[[EngineConfig], Backend]] = {
    "reference": TorchBackend.for_config,
    "cpu": _cpu,
    "cuda": _cuda,
}


def choose(config: EngineConfig) -> Backend:
    """The backend to compute with: the device's fast kernels if they compute on this very machine what torch
    computes; else torch, loudly. One that the config names is taken as it is, unchecked.
    """
    if config.backend is not None:
        return _ALL[config.backend](config)
    try:
        backend = _FAST[config.device](config)
        reference = TorchBackend(backend.precision, backend.device, is_exact=True)
        config.report(backend.self_check(reference))
    except Declined as reason:
        config.report(str(reason))
        return TorchBackend.for_config(config)
    except Exception as error:
        config.report(
            f"the fast kernels are off, torch computes instead (slower): {type(error).__name__}: {error}"
        )
        return TorchBackend.for_config(config)
    return backend
