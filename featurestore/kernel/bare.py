"""Arrays as a pointer and a shape: what the kernel works on, for it does nothing with arrays but index them.

Numba's own arrays take Python's negative indices, which costs a comparison and a choice each time, and drag ten words
along with every call. Here an index is used as it is: it must lie within the array.

Nor does a bare array hold its memory, and Numba lets go of an array after the last line that names it: one that a
function makes itself must be given out by it, or come from the caller instead.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, make_attribute_wrapper, models, register_model


class Bare(types.Type):
    """The type of such an array, in C order."""

    def __init__(self, dtype: types.Type, ndim: int) -> None:
        self.dtype, self.ndim = dtype, ndim
        super().__init__(f"Bare({dtype}, {ndim})")

    @property
    def index(self) -> types.Type:
        """The type of its indices."""
        return types.intp if self.ndim == 1 else types.UniTuple(types.intp, self.ndim)


@register_model(Bare)
class _BareModel(models.StructModel):
    def __init__(self, manager: Any, kind: Bare) -> None:  # noqa: ANN401
        members = [("data", types.CPointer(kind.dtype)), ("shape", types.UniTuple(types.intp, kind.ndim))]
        super().__init__(manager, kind, members)


make_attribute_wrapper(Bare, "shape", "shape")


@intrinsic
def bared(_typing: Any, given: Any) -> Any:  # noqa: ANN401
    """An array, or a named tuple of arrays, made bare."""
    kind = types.NamedTuple([_bare(each) for each in given], given.instance_class) if _many(given) else _bare(given)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        if not _many(given):
            return _stripped(context, builder, given, arguments[0])
        arrays = cgutils.unpack_tuple(builder, arguments[0])
        made = [_stripped(context, builder, *each) for each in zip(given, arrays, strict=True)]
        return context.make_tuple(builder, signature.return_type, made)

    return kind(given), code


def _many(given: types.Type) -> bool:
    return isinstance(given, types.BaseNamedTuple)


def _bare(array: types.Type) -> Bare:
    return Bare(array.dtype, array.ndim)


def _stripped(context: Any, builder: Any, kind: types.Type, array: Any) -> Any:  # noqa: ANN401
    whole = _opened(context, builder, kind, array)
    made = cgutils.create_struct_proxy(_bare(kind))(context, builder)
    made.data, made.shape = whole.data, whole.shape
    return made._getvalue()  # noqa: SLF001


@infer_global(operator.getitem)
class _Get(AbstractTemplate):
    def generic(self, args: Any, _: Any) -> Any:  # noqa: ANN401
        array, _index = args
        return signature(array.dtype, array, array.index) if isinstance(array, Bare) else None


@infer_global(operator.setitem)
class _Set(AbstractTemplate):
    def generic(self, args: Any, _: Any) -> Any:  # noqa: ANN401
        array, _index, _value = args
        return signature(types.none, array, array.index, array.dtype) if isinstance(array, Bare) else None


def _opened(context: Any, builder: Any, kind: types.Type, value: Any) -> Any:  # noqa: ANN401
    """What is in an array; of Numba's own too, with which tests call what is called by the kernel alone."""
    proxy = cgutils.create_struct_proxy(kind) if isinstance(kind, Bare) else context.make_array(kind)
    return proxy(context, builder, value)


def _address(context: Any, builder: Any, kind: Bare, value: Any, index: Any, *, inside: bool = True) -> Any:  # noqa: ANN401
    array = _opened(context, builder, kind, value)
    at = index
    if kind.ndim > 1:
        at, *rest = cgutils.unpack_tuple(builder, index, kind.ndim)
        for size, place in zip(cgutils.unpack_tuple(builder, array.shape, kind.ndim)[1:], rest, strict=True):
            at = builder.add(builder.mul(at, size), place)
    return builder.gep(array.data, [at], inbounds=inside)


@lower_builtin(operator.getitem, Bare, types.Any)
def _get(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
    kind = signature.args[0]
    return context.unpack_value(builder, kind.dtype, _address(context, builder, kind, *arguments))


@lower_builtin(operator.setitem, Bare, types.Any, types.Any)
def _set(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
    kind, (array, index, value) = signature.args[0], arguments
    context.pack_value(builder, kind.dtype, value, _address(context, builder, kind, array, index))


@intrinsic
def flat(_typing: Any, array: Any) -> Any:  # noqa: ANN401
    """A matrix as one row after the other: where several are alike, one index serves all."""
    kind = Bare(array.dtype, 1)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        whole = _opened(context, builder, signature.args[0], arguments[0])
        made = cgutils.create_struct_proxy(kind)(context, builder)
        rows, columns = cgutils.unpack_tuple(builder, whole.shape, 2)
        made.data, made.shape = whole.data, cgutils.pack_array(builder, [builder.mul(rows, columns)])
        return made._getvalue()  # noqa: SLF001

    return kind(array), code


@intrinsic
def fetch(_typing: Any, array: Any, _index: Any) -> Any:  # noqa: ANN401
    """Bring the cache line of `array[index]` near; it need not be used, nor be there."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        place = _address(context, builder, signature.args[0], *arguments, inside=False)
        address = builder.bitcast(place, cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [address, number(0), number(3), number(1)])  # to read, to keep, data
        return context.get_dummy_value()

    return types.none(array, array.index), code


@intrinsic
def move(_typing: Any, words: Any, _to: Any, _at: Any, _count: Any) -> Any:  # noqa: ANN401
    """Copy `count` words from index `at` to index `to`, as if all were read before any is written."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        array, to, at, count = arguments
        target, source = (_address(context, builder, signature.args[0], array, index) for index in (to, at))
        cgutils.raw_memmove(builder, target, source, count, 8)
        return context.get_dummy_value()

    return types.none(words, types.intp, types.intp, types.intp), code


@intrinsic
def wipe(_typing: Any, words: Any, _at: Any, _count: Any) -> Any:  # noqa: ANN401
    """Set `count` words from index `at` on to 0."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        array, at, count = arguments
        size = builder.mul(count, count.type(8))
        cgutils.memset(builder, _address(context, builder, signature.args[0], array, at), size, 0)
        return context.get_dummy_value()

    return types.none(words, types.intp, types.intp), code
