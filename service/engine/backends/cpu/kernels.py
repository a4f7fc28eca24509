"""The compiled kernels: loaded from where they are kept, else compiled, in processes of their own, and kept.

Loading needs LLVM's linker and no compiler: numba is not imported here. Python calls a kernel by its address.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from llvmlite import binding

from service.engine.backends.cpu import cache, processor
from service.engine.container import memory_left_bytes, usable_processors

# in two parts that take equally long to compile
PARTS = (
    ("forward_task", "attention_task", "linear_task", "multiply_one"),
    ("attend_rows", "draw_task", "score_task", "work", "run", "initialise", "close"),
)
NAMES = tuple(name for part in PARTS for name in part)
_COMPILER = "service.engine.backends.cpu.native.compiler"
_BYTES_TO_SHARE = 600 << 20  # what two compilers at once take, generously


class CannotCompile(RuntimeError):
    """The compiler ended with an error; the message is its last line."""


def symbol(name: str) -> str:
    """What a kernel is called in its object file."""
    return f"textgen_{name}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Kernels in this process's memory.

    Args:
        engine: LLVM's, which owns the memory.
        addresses: by name.
        complaint: why the next start has to compile again; "" if it has not.
    """

    engine: Any
    addresses: dict[str, int]
    complaint: str


_loaded: Loaded | None = None
_is_distrusted = False  # what is kept; compiled anew, it is replaced
_retired: list[Loaded] = []


def address(name: str) -> int:
    """Where a kernel lies; loads all of them at first use.

    Raises:
        DamagedKernels: those that are kept are not what was once compiled.
        CannotCompile: there are none, and none can be made.
    """
    return load().addresses[name]


def load() -> Loaded:
    """Load the kernels, once."""
    global _loaded
    if _loaded is None:
        complaint, objects = "", None if _is_distrusted else cache.read()
        if objects is None:
            objects = _compile()
            complaint = cache.keep(objects)
        _loaded = _link(objects, complaint)
    return _loaded


def forget() -> None:
    """Compile them anew at the next use and replace those kept: they are damaged, or compute something else.

    Where the folder cannot be written they stay, but are not read again here. What was loaded stays where it
    is: another engine of this process may be at work with it.
    """
    global _loaded, _is_distrusted
    if _loaded is not None:
        _retired.append(_loaded)
    _loaded, _is_distrusted = None, True


def _compile() -> list[bytes]:
    """All kernels, by two compilers at once where there are processors and memory for them."""
    left = memory_left_bytes()
    is_roomy = usable_processors() > 1 and (left is None or left > _BYTES_TO_SHARE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
    compilers = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", _COMPILER, *names],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for names in (PARTS if is_roomy else (NAMES,))
    ]
    try:
        return [_result_of(compiler) for compiler in compilers]
    finally:
        for compiler in compilers:
            compiler.kill()
            compiler.communicate()


def _result_of(compiler: subprocess.Popen[bytes]) -> bytes:
    made, said = compiler.communicate()
    if compiler.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines() or [f"exit code {compiler.returncode}"]
        raise CannotCompile(f"the kernels' compiler failed: {lines[-1]}")
    return made


def _link(objects: list[bytes], complaint: str) -> Loaded:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=processor.name(), features=processor.features(), reloc="static", codemodel="jitdefault", jit=True
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    for code in objects:
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Loaded(engine, {name: engine.get_function_address(symbol(name)) for name in NAMES}, complaint)
