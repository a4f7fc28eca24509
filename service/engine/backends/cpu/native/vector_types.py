# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""The types behind `vectors`: sixteen lanes as one value of numba's, with operators, and what makes of a
function that emits LLVM's instructions one that numba calls.
"""

from __future__ import annotations

import operator
from typing import Any

from numba.core import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from service.engine.backends.cpu.native.emit import VD, VF, VI, VM


class VectorType(types.Type):
    """Sixteen lanes of one kind: 'f32', 'f64', 'i32' or 'mask'."""

    def __init__(self, lane: str) -> None:
        self.lane = lane
        super().__init__(name=f"vector16_{lane}")


FLOATS, DOUBLES, INTS, MASK = map(VectorType, ("f32", "f64", "i32", "mask"))
_LLVM = {"f32": VF, "f64": VD, "i32": VI, "mask": VM}


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    """A vector lives in one register (or several narrow ones)."""

    def __init__(self, dmm: Any, fe_type: VectorType) -> None:
        super().__init__(dmm, fe_type, _LLVM[fe_type.lane])


class _SameType(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 2 and args[0] == args[1] and args[0] in (FLOATS, DOUBLES, INTS):
            return signature(args[0], *args)
        return None


def _operator(function: Any, **emit: str) -> None:
    """Let `a <function> b` on vectors emit the named llvmlite builder method."""
    infer_global(function)(type(f"_Infer_{function.__name__}", (_SameType,), {"key": function}))
    for lane, method in emit.items():
        vector = VectorType(lane)

        def lower(context: Any, builder: Any, sig: Any, args: Any, method: str = method) -> Any:
            return getattr(builder, method)(*args)

        lower_builtin(function, vector, vector)(lower)


_operator(operator.add, f32="fadd", f64="fadd", i32="add")
_operator(operator.sub, f32="fsub", i32="sub")
_operator(operator.mul, f32="fmul", i32="mul")
_operator(operator.truediv, f32="fdiv")


def numba_intrinsic(result: Any, *parameters: Any) -> Any:
    """Make an intrinsic of fixed types from an emitter `(builder, *args) -> value or None`."""

    def wrap(emit: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = emit(builder, *args)
            return context.get_dummy_value() if value is None else value

        names = [f"a{i}" for i in range(len(parameters))]
        scope: dict[str, Any] = {"codegen": codegen, "sig": result(*parameters)}
        # Numba reads the parameter list of the function that it is given.
        exec(f"def {emit.__name__}(typingctx, {', '.join(names)}):\n    return sig, codegen", scope)
        made = scope[emit.__name__]
        made.__doc__ = emit.__doc__
        return intrinsic(made)

    return wrap
