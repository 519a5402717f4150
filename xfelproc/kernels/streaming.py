"""Lines of pixels at once: what most lines of a frame take, in vector instructions, with results past the processor's caches.

An ordinary store first reads the line that it writes to: where memory sets the pace, that is a third of what a frame costs.
The compiler makes no such stores by itself, nor vectors of a loop that may end in the midst of a line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LINE = 16
"""Pixels that are looked at together: 4 bytes of each are a line of the cache."""

FLOATS = ir.VectorType(ir.FloatType(), LINE)


def _inlined(function: Callable[..., Any]) -> Any:
    """Return what kernels call; numba's own type takes it for a function of types."""
    return intrinsic(function)


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any, number: int) -> tuple[Any, int]:
    """Return where `LINE` items from the index after an argument on are, and the size of one (bytes)."""
    kind = signature.args[number]
    data = context.make_array(kind)(context, builder, arguments[number]).data
    line = ir.VectorType(context.get_data_type(kind.dtype), LINE).as_pointer()
    return builder.bitcast(builder.gep(data, [arguments[number + 1]]), line), kind.dtype.bitwidth // 8


def _load(context: Any, builder: Any, signature: Any, arguments: Any, number: int) -> Any:
    pointer, size = _pointer(context, builder, signature, arguments, number)
    return builder.load(pointer, align=size)


def _spread(builder: Any, value: Any) -> Any:
    """Return a vector of equal numbers."""
    lane = builder.insert_element(ir.Constant(ir.VectorType(value.type, LINE), ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(lane, lane, ir.Constant(ir.VectorType(ir.IntType(32), LINE), [0] * LINE))


def _signed(kind: Any) -> bool:
    signed: bool = kind.signed
    return signed


def _less(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Return the first argument's values as float32, less those of the third."""
    kind, value = signature.args[0].dtype, _load(context, builder, signature, arguments, 0)
    if isinstance(kind, types.Integer):
        value = builder.sitofp(value, FLOATS) if _signed(kind) else builder.uitofp(value, FLOATS)
    elif kind.bitwidth > 32:
        value = builder.fptrunc(value, FLOATS)
    return builder.fsub(value, _load(context, builder, signature, arguments, 2))


def _stream(context: Any, builder: Any, signature: Any, arguments: Any, number: int, value: Any) -> Any:
    pointer, size = _pointer(context, builder, signature, arguments, number)
    stored = builder.store(value, pointer, align=LINE * size)
    stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
    return context.get_dummy_value()


@_inlined
def line_within(typing: Any, values: Any, at: Any, low: Any, high: Any) -> Any:
    """Return whether `LINE` values from ``values[at]`` on are from ``low`` to ``high``, of the same type, and not NaN."""
    kind = values.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        compare = builder.fcmp_ordered
        if isinstance(kind, types.Integer):
            compare = builder.icmp_signed if _signed(kind) else builder.icmp_unsigned
        value = _load(context, builder, signature, arguments, 0)
        inside = builder.and_(
            compare(">=", value, _spread(builder, arguments[2])), compare("<=", value, _spread(builder, arguments[3]))
        )
        bits = ir.IntType(LINE)
        return builder.icmp_unsigned("==", builder.bitcast(inside, bits), ir.Constant(bits, (1 << LINE) - 1))

    return types.boolean(values, types.intp, kind, kind), generate


@_inlined
def line_less(typing: Any, values: Any, at: Any, dark: Any, begin: Any, out: Any, there: Any) -> Any:
    """Write `LINE` values from ``values[at]`` on less those from ``dark[begin]`` on (float32) to ``out[there:]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, size = _pointer(context, builder, signature, arguments, 4)
        builder.store(_less(context, builder, signature, arguments), pointer, align=size)
        return context.get_dummy_value()

    return types.void(values, types.intp, dark, types.intp, out, types.intp), generate


@_inlined
def stream_scaled(
    typing: Any, values: Any, at: Any, dark: Any, begin: Any, scale: Any, here: Any, shift: Any, factor: Any, out: Any, there: Any
) -> Any:
    """Write (values - dark - shift) × (scale × factor) of `LINE` pixels to ``out[there:]``, the begin of a line, past the caches.

    Values are those from ``values[at]`` on, of any type of numbers, constants those from ``dark[begin]`` and ``scale[here]`` on:
    arrays (pixel,) of float32. The same operations in the same order as a loop has, and the same bits.
    `finish_stores` has to follow.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.fsub(_less(context, builder, signature, arguments), _spread(builder, arguments[6]))
        inverse = builder.fmul(_load(context, builder, signature, arguments, 4), _spread(builder, arguments[7]))
        return _stream(context, builder, signature, arguments, 8, builder.fmul(value, inverse))

    number, index = types.float32, types.intp
    return types.void(values, index, dark, index, scale, index, number, number, out, index), generate


@_inlined
def stream_shifted(typing: Any, adu: Any, at: Any, scale: Any, here: Any, shift: Any, factor: Any, out: Any, there: Any) -> Any:
    """Do as `stream_scaled` with values from ``adu[at]`` on that are less their pedestal already (float32)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.fsub(_load(context, builder, signature, arguments, 0), _spread(builder, arguments[4]))
        inverse = builder.fmul(_load(context, builder, signature, arguments, 2), _spread(builder, arguments[5]))
        return _stream(context, builder, signature, arguments, 6, builder.fmul(value, inverse))

    number, index = types.float32, types.intp
    return types.void(adu, index, scale, index, number, number, out, index), generate


@_inlined
def finish_stores(typing: Any) -> Any:
    """Have all stores past the caches done before anything that follows, for other threads as well."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
