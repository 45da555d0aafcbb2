"""The instructions that some processors have for the vocabulary; each gives the bits of `lower_generic.py`.

AVX2     pmaddubsw adds two products in 16 bits; pmaddwd widens to 32. Exact inside the bounds that `dot.py` states.
         An unsigned byte is cut in two nibbles, whose sums stand side by side: QuadSums is 32 x int16.
VNNI     vpdpbusd adds four products to an int32, exact for all bytes; with 32 registers of 64 bytes (AVX-512: wide), or
         16 of 32 (AVX-VNNI).
NEON     sdot does the same for signed bytes; w - 128 and a correction of 128 * sum(a) make it serve unsigned ones.
"""

from llvmlite import ir

from kernels.lower_generic import (
    Lowering,
    call,
    constant,
    f16,
    f32,
    f32x8,
    i8,
    i8x32,
    i16,
    i16x16,
    i32,
    i32x8,
    i64,
    load,
    pick,
    splat,
    store,
)
from kernels.target import Target

i16x32, i32x16 = ir.VectorType(i16, 32), ir.VectorType(i32, 16)


def lowerings(target: Target) -> dict[str, Lowering]:
    """The native lowerings of a target; what is missing here is generic."""
    found: dict[str, Lowering] = {}
    if target.avx2:
        found |= _half_floats | _x86 | (_vnni if target.vnni else _avx2)
        if target.wide:
            found |= _wide
    elif target.neon_dot:
        found |= _half_floats | _neon
    return found


def sum_types(target: Target) -> dict[tuple[str, int], ir.Type]:
    """The machine form of the running sums, by their type and lanes."""
    if target.avx2 and not target.vnni:
        return {("pair sums", 16): i16x16, ("quad sums", 8): i16x32}
    return {("pair sums", 16): i32x8, ("pair sums", 32): i32x16, ("quad sums", 8): i32x8}


def _load_f16x8(b: ir.IRBuilder, p: ir.Value, i: ir.Value) -> ir.Value:
    return b.fpext(load(b, p, i, ir.VectorType(f16, 8)), f32x8)


def _store_f16x8(b: ir.IRBuilder, p: ir.Value, i: ir.Value, v: ir.Value) -> None:
    store(b, p, i, b.fptrunc(v, ir.VectorType(f16, 8)))


def _store_f16(b: ir.IRBuilder, p: ir.Value, i: ir.Value, x: ir.Value) -> None:
    store(b, p, i, b.bitcast(b.fptrunc(x, f16), i16))


def _widen_f16(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    return b.fpext(b.bitcast(b.trunc(bits, i16), f16), f32)


def _to_i32(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    if a.type.count == 8:
        return call(b, "llvm.x86.avx.cvtt.ps2dq.256", i32x8, a)
    every, rounding = ir.Constant(i16, -1), ir.Constant(i32, 4)  # all lanes; as it is set (truncation does not ask)
    return call(b, "llvm.x86.avx512.mask.cvttps2dq.512", i32x16, a, constant(0, i32x16), every, rounding)


_half_floats: dict[str, Lowering] = {
    "load_f16x8": _load_f16x8,
    "store_f16x8": _store_f16x8,
    "store_f16": _store_f16,
    "widen_f16": _widen_f16,
}


def _maddubs(b: ir.IRBuilder, w: ir.Value, a: ir.Value) -> ir.Value:
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", i16x16, w, a)


def _maddwd(b: ir.IRBuilder, v: ir.Value, factor: int) -> ir.Value:
    return call(b, "llvm.x86.avx2.pmadd.wd", i32x8, v, constant(factor, i16x16))


def _in_order(b: ir.IRBuilder, sums: ir.Value) -> ir.Value:
    """`sums`, held to this place among the others by an empty piece of assembly.

    Otherwise LLVM turns a chain of additions into a tree, or computes one row after the other and keeps all unpacked codes
    meanwhile: both need more registers than there are, and cost a quarter of the speed.
    """
    same = ir.FunctionType(sums.type, [sums.type])
    return b.call(ir.InlineAsm(same, "", "=v,0", side_effect=True), [sums])


def _broadcast_times(b: ir.IRBuilder, p: ir.Value, i: ir.Value, factor: ir.Value, like: ir.Value) -> ir.Value:
    """Broadcast by the load, then multiplied: the other way round takes a journey through a scalar register."""
    lanes = _in_order(b, splat(b, load(b, p, i, i32), like.type))
    return b.mul(lanes, splat(b, b.trunc(factor, i32), like.type))


def _high_nibbles(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """Shifted in 16 bits: LLVM's choice for bytes, `gf2p8affineqb`, would take turns with the products."""
    pairs = ir.VectorType(i16, v.type.count // 2)
    moved = b.lshr(b.bitcast(v, pairs), constant(4, pairs))
    return b.and_(b.bitcast(moved, v.type), constant(15, v.type))


_x86: dict[str, Lowering] = {
    "to_i32": _to_i32,
    "broadcast_times": _broadcast_times,
    "high_nibbles": _high_nibbles,
}


def _signed_pairs(b: ir.IRBuilder, w: ir.Value, zero_point: int, a: ir.Value) -> ir.Value:
    signed = b.sub(w, constant(zero_point, i8x32))
    magnitude = call(b, "llvm.abs.v32i8", i8x32, signed, ir.Constant(ir.IntType(1), 0))
    return _maddubs(b, magnitude, call(b, "llvm.x86.avx2.psign.b", i8x32, a, signed))


def _avx2_dot_i6(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    return _in_order(b, b.add(sums, _signed_pairs(b, w, 32, a)))


def _avx2_dot_i8(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    return _in_order(b, b.add(sums, _maddwd(b, _signed_pairs(b, w, -128, a), 1)))


def _avx2_dot_u4(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    return _in_order(b, b.add(sums, _maddubs(b, w, a)))


def _avx2_dot_u8(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    low = _maddubs(b, b.and_(w, constant(15, i8x32)), a)
    high = _maddubs(b, b.lshr(w, constant(4, i8x32)), a)
    both = b.shuffle_vector(low, high, ir.Constant(ir.VectorType(i32, 32), list(range(32))))
    return b.add(sums, both)


def _avx2_quad_sums(b: ir.IRBuilder, sums: ir.Value) -> ir.Value:
    low, high = (pick(b, sums, list(range(start, start + 16))) for start in (0, 16))
    return b.add(_maddwd(b, low, 1), _maddwd(b, high, 16))


_avx2: dict[str, Lowering] = {
    "zero_pair_sums": lambda b: constant(0, i16x16),
    "dot_u4": _avx2_dot_u4,
    "pair_sums": lambda b, sums: _maddwd(b, sums, 1),
    "zero_quad_sums": lambda b: constant(0, i16x32),
    "dot_u8": _avx2_dot_u8,
    "dot_i6": _avx2_dot_i6,
    "dot_i8": _avx2_dot_i8,
    "quad_sums": _avx2_quad_sums,
}


def _vpdpbusd(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    return call(b, f"llvm.x86.avx512.vpdpbusd.{8 * w.type.count}", sums.type, sums, w, a)


def _vpdpbusd_in_order(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    return _in_order(b, _vpdpbusd(b, sums, w, a))


_vnni: dict[str, Lowering] = {
    "dot_u4": _vpdpbusd_in_order,
    "dot_u8": _vpdpbusd,
    "dot_i6": _vpdpbusd_in_order,
    "dot_i8": _vpdpbusd_in_order,
    "centred": lambda b, sums, offset: b.sub(sums, offset),
}


def _join(b: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    both = 2 * low.type.count
    return b.shuffle_vector(low, high, ir.Constant(ir.VectorType(i32, both), list(range(both))))


def _broadcast_i8x4_wide(b: ir.IRBuilder, p: ir.Value, i: ir.Value) -> ir.Value:
    return b.bitcast(splat(b, load(b, p, i, i32), i32x16), ir.VectorType(i8, 64))


_wide: dict[str, Lowering] = {
    "wide": lambda b: ir.Constant(i64, 1),
    "join_u8": _join,
    "join_i32": _join,
    "join_f32": _join,
    "load_f32x16": lambda b, p, i: load(b, p, i, ir.VectorType(f32, 16)),
    "store_f32x16": store,
    "low_half": lambda b, v: pick(b, v, list(range(8))),
    "high_half": lambda b, v: pick(b, v, list(range(8, 16))),
    "broadcast_i8x4_wide": _broadcast_i8x4_wide,
    "zero_pair_sums_wide": lambda b: constant(0, i32x16),
}


def _sdot(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    halves = []
    for h in (0, 1):
        s = pick(b, sums, list(range(4 * h, 4 * h + 4)))
        x, y = (pick(b, v, list(range(16 * h, 16 * h + 16))) for v in (w, a))
        halves.append(call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", s.type, s, x, y))
    return b.shuffle_vector(*halves, ir.Constant(ir.VectorType(i32, 8), list(range(8))))


def _neon_dot_u8(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    least = ir.Constant(i8x32, [ir.Constant(i8, -128)] * 32)
    signed = _sdot(b, sums, b.xor(w, least), a)
    return b.sub(signed, _sdot(b, constant(0, i32x8), least, a))


def _neon_dot_i6(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    return _sdot(b, sums, b.sub(w, constant(32, i8x32)), a)


def _neon_dot_i8(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    return _sdot(b, sums, b.xor(w, constant(-128, i8x32)), a)


_neon: dict[str, Lowering] = {"dot_u4": _sdot, "dot_u8": _neon_dot_u8, "dot_i6": _neon_dot_i6, "dot_i8": _neon_dot_i8}
