"""What this processor can do, and what that makes of a tile. Loads LLVM's description of it, no compiler."""

from __future__ import annotations

import ctypes
import os
import platform

from llvmlite import binding

from service.engine.backends.cpu.records import BFLOAT16, FLOAT32

_ARCH_REQ_XCOMP_PERM, _XTILEDATA, _SYS_ARCH_PRCTL = 0x1023, 18, 158

LANES = 16  # float32 in one vector; LLVM splits it where registers are narrower
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


def name() -> str:
    """The processor that code is compiled for: this one, unless numba is told another (`NUMBA_CPU_NAME`)."""
    return os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()


def features() -> str:
    """What it can do, as LLVM writes it: "+avx2,-avx512f,…"."""
    if os.environ.get("NUMBA_CPU_NAME"):
        return os.environ.get("NUMBA_CPU_FEATURES", "")
    return os.environ.get("NUMBA_CPU_FEATURES") or str(binding.get_host_cpu_features().flatten())


def _tiles_are_permitted() -> bool:
    """Ask Linux for this process's use of the matrix registers; False where there is no such permission.

    Source: Linux, Documentation/arch/x86/xstate.rst.
    """
    if platform.system() != "Linux" or not IS_X86:  # the number means another call elsewhere
        return False
    return bool(ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0)


_HAS = {told[1:] for told in features().split(",") if told.startswith("+")}
HAS_AVX512 = "avx512f" in _HAS
HAS_AVX2 = "avx2" in _HAS
HAS_VNNI = HAS_AVX512 and "avx512vnni" in _HAS
HAS_TILES = HAS_AVX512 and {"amx-tile", "amx-bf16", "amx-int8"} <= _HAS and _tiles_are_permitted()
# Whether it multiplies bfloat16 faster than float32, which Intel's vector unit does not (bench/NOTES.md).
HAS_BF16 = HAS_TILES or (HAS_AVX512 and "avx512bf16" in _HAS and name().startswith("znver"))

VECTORS = 4 if HAS_AVX512 else 1  # vectors of columns in a tile
TILE = VECTORS * LANES  # columns in a tile
STEP_BYTES = VECTORS * 64  # packed weights of one tile and one step of K
# Maximum rows in a tile, by kind. With 32 registers, 6 * 4 sums, 4 weights and a broadcast fit; with 16 that
# are half as wide, 6 * 2, 2 and 1, and fewer rows where int8's bytes have to be taken apart in registers.
ROWS = (6, 6, 6) if HAS_AVX512 else (6, 6, 4)
MAX_ROWS = max(ROWS)
MATRIX_ROWS = 16  # of activations that the matrix registers take at once
MAX_PASS_ROWS = MATRIX_ROWS if HAS_TILES else MAX_ROWS  # in one call, by matrix registers or without
# query rows of one sequence that share the loads of keys and values: the most, and some
ROWS_SHARING = (8, 4) if HAS_AVX512 else (4, 2)


def row_kind(weight_kind: int) -> int:
    """Kind of the rows that weights of this kind are multiplied by: bfloat16 weights are widened in registers
    to meet float32 rows where that is faster.
    """
    return FLOAT32 if weight_kind == BFLOAT16 and not HAS_BF16 else weight_kind
