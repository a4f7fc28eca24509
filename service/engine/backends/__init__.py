"""One wing per processor behind the protocol of `engine.backend`: `torch` (the reference, on any device),
`cpu`, `cuda`. A wing enters no other wing, and nobody but `choose` enters one.

`kernel_check` is what their self-checks share. A wing is imported when it is made: a GPU's needs Triton, and
the compiler of the processor's comes through here without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from service.engine.config import BackendName, DeviceName, EngineConfig
from service.engine.memory import is_out_of_memory

if TYPE_CHECKING:
    from service.engine.backend import Backend, FastBackend


def _cpu(config: EngineConfig) -> FastBackend:
    from service.engine.backends.cpu.cache import has_kernels

    with config.step("loading kernels" if has_kernels() else "compiling kernels (first start only)"):
        from service.engine.backends.cpu.backend import CpuBackend

        return CpuBackend.for_config(config)


def _torch(config: EngineConfig) -> Backend:
    from service.engine.backends.torch.backend import TorchBackend

    return TorchBackend.for_config(config)


def _cuda(config: EngineConfig) -> FastBackend:
    from service.engine.backends.cuda.backend import CudaBackend

    return CudaBackend.for_config(config)


_FAST: dict[DeviceName, Callable[[EngineConfig], FastBackend]] = {"cpu": _cpu, "cuda": _cuda}
_ALL: dict[BackendName, Callable[[EngineConfig], Backend]] = {
    "reference": _torch,
    "cpu": _cpu,
    "cuda": _cuda,
}


def choose(config: EngineConfig) -> Backend:
    """The backend to compute with: the device's fast kernels if they compute on this very machine what torch
    computes; else torch, loudly. One that the config names is taken as it is, unchecked.

    Compiled kernels that fail may have been damaged where they are kept: they are compiled once more.
    """
    from service.engine.backend import Declined

    if config.backend is not None:
        return _ALL[config.backend](config)
    try:
        try:
            return _checked(config)
        except Declined:
            raise
        except Exception as error:
            if config.device != "cpu" or is_out_of_memory(error):
                raise
            config.warn(f"the compiled kernels failed and are compiled anew: {_told(error)}")
            _forget_kernels()
            return _checked(config)
    except Declined as reason:
        config.report(str(reason))
    except Exception as error:
        if is_out_of_memory(error):  # torch would take more
            raise
        config.fall_back(f"the fast kernels are off, torch computes instead (slower): {_told(error)}")
    return _torch(config)


def _checked(config: EngineConfig) -> Backend:
    """The device's fast kernels, compared with torch."""
    from service.engine.backends.torch.backend import TorchBackend

    backend = _FAST[config.device](config)
    reference = TorchBackend(backend.precision, backend.device, is_exact=True)
    config.report(backend.self_check(reference))
    return backend


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _forget_kernels() -> None:
    """Let go of the processor's compiled kernels: who uses them next compiles and keeps others."""
    from service.engine.backends.cpu import kernels, pool

    pool.close()
    kernels.forget()
