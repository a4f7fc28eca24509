"""Compiles kernels into one object file, on standard output: `python -m …native.compiler forward_task …`.

`kernels` runs it in processes of their own. Numba infers types and writes LLVM's language. It would optimise
and load each function that a kernel calls by itself, too, and that takes longer than all the rest; here all
of it is put together first, and optimised once.
"""

from __future__ import annotations

import sys

from llvmlite import binding
from numba.core import codegen, types
from numba.core.compiler import Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from service.engine.backends.cpu.kernels import symbol
from service.engine.backends.cpu.native import attend, draw_task, linear_task, step, team
from service.engine.backends.cpu.native.functions import KERNELS

MODULES = (attend, draw_task, linear_task, step, team)  # importing them fills KERNELS


class _Library(codegen.JITCodeLibrary):  # type: ignore[misc]
    """What numba has made of one function: not optimised, for `compile_kernels` does that, and not loaded."""

    def _optimize_functions(self, ll_module: binding.ModuleRef) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True


@global_compiler_lock  # type: ignore[untyped-decorator]
def compile_kernels(names: list[str]) -> bytes:
    """Machine code of kernels for this processor.

    Args:
        names: of `functions.KERNELS`.

    Returns:
        An object file that defines a symbol for each of them.
    """
    codegen.JITCPUCodegen._library_class = _Library
    # what numba would call a compiled function by: some built-in, another one for each
    cpu_target.target_context.get_executable = lambda library, function, environment: [].append
    target = cpu_target.target_context.codegen()
    whole = binding.parse_assembly("")
    whole.data_layout, whole.triple = target._data_layout, binding.get_process_triple()
    for name in names:
        whole.link_in(_module_of(name))
    exported = set(map(symbol, names))
    for function in whole.functions:
        if not function.is_declaration and function.name not in exported:
            function.linkage = "internal"
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.slp_vectorization = False
    passes = binding.create_pass_builder(target._tm, options)
    passes.getModulePassManager().run(whole, passes)
    return bytes(target._tm.emit_object(whole))


def _module_of(name: str) -> binding.ModuleRef:
    """A kernel and all it calls, behind a plain function of its name.

    Numba's own function gives a status, and where an exception is. There is none, see `functions`; if there
    were one, the process would end rather than go on with half a result.
    """
    function = KERNELS[name]
    count = function.__code__.co_argcount
    flags = Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    flags.nrt = False
    result = compile_extra(
        cpu_target.typing_context,
        cpu_target.target_context,
        function,
        (types.int64,) * count,
        types.void,
        flags,
        locals={},
    )
    result.library.finalize()
    module = result.library._final_module
    native = result.fndesc.llvm_func_name
    given = "".join(f", i64 %a{i}" for i in range(count))
    wrapper = f"""
        declare i32 @"{native}"(ptr, ptr{", i64" * count})
        declare void @llvm.trap()
        define void @{symbol(name)}({given[2:]}) {{
            %result = alloca ptr
            %error = alloca ptr
            %status = call i32 @"{native}"(ptr %result, ptr %error{given})
            %failed = icmp ne i32 %status, 0
            br i1 %failed, label %raised, label %done
        raised:
            call void @llvm.trap()
            unreachable
        done:
            ret void
        }}"""
    module.link_in(binding.parse_assembly(wrapper))
    return module


if __name__ == "__main__":
    sys.stdout.buffer.write(compile_kernels(sys.argv[1:]))
