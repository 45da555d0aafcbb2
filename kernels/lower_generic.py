"""Every operation of the vocabulary in plain LLVM, for any processor; `lower_native.py` replaces some of them.

A lowering is a function `(builder, *values) -> value`. Where LLVM's own form would call into a library that is not there
(half floats) or may differ (`roundeven`), integers do the work.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

i8, i16, i32, i64 = (ir.IntType(n) for n in (8, 16, 32, 64))
f32 = ir.FloatType()
f16 = ir.HalfType()
i8x32, i16x16, i32x8, f32x8 = (ir.VectorType(t, n) for t, n in ((i8, 32), (i16, 16), (i32, 8), (f32, 8)))

Lowering = Callable[..., Any]
generic: dict[str, Lowering] = {}


def lower(function: Lowering) -> Lowering:
    """Register the generic lowering of the operation of this name."""
    generic[function.__name__] = function
    return function


def constant(value: float, vector: ir.VectorType) -> ir.Constant:
    """A vector constant with the same value in each lane."""
    return ir.Constant(vector, [value] * vector.count)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    """Call an LLVM intrinsic."""
    known = builder.module.globals.get(name)
    function = known or ir.Function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(function, args)


def splat(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    """`value` in each lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(i32, 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(i32, vector.count), [0] * vector.count))


def pick(builder: ir.IRBuilder, v: ir.Value, lanes: list[int]) -> ir.Value:
    """The named lanes of v, as a shorter vector."""
    return builder.shuffle_vector(
        v, ir.Constant(v.type, ir.Undefined), ir.Constant(ir.VectorType(i32, len(lanes)), lanes)
    )


def load(builder: ir.IRBuilder, p: ir.Value, i: ir.Value, type_: ir.Type) -> ir.Value:
    """Load an unaligned value of `type_` from p[i]."""
    address = builder.bitcast(builder.gep(p, [i]), type_.as_pointer())
    value = builder.load(address)
    value.align = 1
    return value


def store(builder: ir.IRBuilder, p: ir.Value, i: ir.Value, value: ir.Value) -> None:
    """Store an unaligned value at p[i]."""
    address = builder.bitcast(builder.gep(p, [i]), value.type.as_pointer())
    builder.store(value, address).align = 1


# ---- memory ----

for _name, _type in (("u8x32", i8x32), ("i8x32", i8x32), ("i32x8", i32x8), ("f32x8", f32x8)):
    generic[f"load_{_name}"] = lambda b, p, i, t=_type: load(b, p, i, t)
    if _name != "i8x32":
        generic[f"store_{_name}"] = lambda b, p, i, v: store(b, p, i, v)


@lower
def load_i8x8(b: ir.IRBuilder, p: ir.Value, i: ir.Value) -> ir.Value:
    return b.sext(load(b, p, i, ir.VectorType(i8, 8)), i32x8)


@lower
def load_u8x8(b: ir.IRBuilder, p: ir.Value, i: ir.Value) -> ir.Value:
    return b.zext(load(b, p, i, ir.VectorType(i8, 8)), i32x8)


@lower
def load_f16x8(b: ir.IRBuilder, p: ir.Value, i: ir.Value) -> ir.Value:
    return widen_half(b, b.zext(load(b, p, i, ir.VectorType(i16, 8)), i32x8), f32x8)


@lower
def load_bf16x8(b: ir.IRBuilder, p: ir.Value, i: ir.Value) -> ir.Value:
    wide = b.zext(load(b, p, i, ir.VectorType(i16, 8)), i32x8)
    return b.bitcast(b.shl(wide, constant(16, i32x8)), f32x8)


@lower
def broadcast_i8x4(b: ir.IRBuilder, p: ir.Value, i: ir.Value) -> ir.Value:
    return b.bitcast(splat(b, load(b, p, i, i32), i32x8), i8x32)


@lower
def broadcast_i32(b: ir.IRBuilder, p: ir.Value, i: ir.Value, like: ir.Value) -> ir.Value:
    return splat(b, load(b, p, i, i32), like.type)


@lower
def broadcast_times(b: ir.IRBuilder, p: ir.Value, i: ir.Value, factor: ir.Value, like: ir.Value) -> ir.Value:
    return splat(b, b.mul(load(b, p, i, i32), b.trunc(factor, i32)), like.type)


@lower
def store_i8x8(b: ir.IRBuilder, p: ir.Value, i: ir.Value, v: ir.Value) -> None:
    store(b, p, i, b.trunc(v, ir.VectorType(i8, 8)))


@lower
def store_f16x8(b: ir.IRBuilder, p: ir.Value, i: ir.Value, v: ir.Value) -> None:
    store(b, p, i, b.trunc(narrow_to_half(b, v), ir.VectorType(i16, 8)))


@lower
def store_f16(b: ir.IRBuilder, p: ir.Value, i: ir.Value, x: ir.Value) -> None:
    lanes = narrow_to_half(b, splat(b, x, f32x8))
    store(b, p, i, b.trunc(b.extract_element(lanes, ir.Constant(i32, 0)), i16))


@lower
def prefetch(b: ir.IRBuilder, p: ir.Value, i: ir.Value) -> None:
    address = b.bitcast(b.gep(p, [i]), i8.as_pointer())
    read, keep, data = (ir.Constant(i32, n) for n in (0, 3, 1))
    function = b.module.globals.get("llvm.prefetch.p0") or ir.Function(
        b.module, ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32]), "llvm.prefetch.p0"
    )
    b.call(function, [address, read, keep, data])


generic["prefetch_f16"] = generic["prefetch_f32"] = prefetch


@lower
def wide(b: ir.IRBuilder) -> ir.Value:
    return ir.Constant(i64, 0)


def widen_half(b: ir.IRBuilder, bits: ir.Value, result: ir.Type) -> ir.Value:
    """Half-float bits in int32 -> float: shift the fields into place and multiply by 2^112, which is exact."""
    whole = bits.type
    c = (lambda n: constant(n, whole)) if isinstance(whole, ir.VectorType) else (lambda n: ir.Constant(whole, n))
    magnitude = b.and_(bits, c(0x7FFF))
    scale = b.bitcast(c(0x77800000), result)
    finite = b.bitcast(b.fmul(b.bitcast(b.shl(magnitude, c(13)), result), scale), whole)
    special = b.or_(finite, c(0x7F800000))
    value = b.select(b.icmp_unsigned(">", magnitude, c(0x7BFF)), special, finite)
    return b.bitcast(b.or_(value, b.shl(b.and_(bits, c(0x8000)), c(16))), result)


def narrow_to_half(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """Float -> half-float bits in int32, to nearest, ties to even."""

    def c(n: int) -> ir.Constant:
        return constant(n, i32x8)

    bits = b.bitcast(v, i32x8)
    magnitude = b.and_(bits, c(0x7FFFFFFF))
    odd = b.and_(b.lshr(magnitude, c(13)), c(1))
    normal = b.lshr(b.add(b.add(magnitude, c(0xC8000FFF - (1 << 32))), odd), c(13))
    half = b.bitcast(c(0x3F000000), f32x8)  # adding 0.5 leaves a subnormal half in the low bits, rounded
    tiny = b.sub(b.bitcast(b.fadd(b.bitcast(magnitude, f32x8), half), i32x8), c(0x3F000000))
    special = b.select(b.icmp_unsigned(">", magnitude, c(0x7F800000)), c(0x7E00), c(0x7C00))
    result = b.select(b.icmp_unsigned("<", magnitude, c(0x38800000)), tiny, normal)
    result = b.select(b.icmp_unsigned(">=", magnitude, c(0x47800000)), special, result)
    return b.or_(result, b.lshr(b.and_(bits, c(0x80000000 - (1 << 32))), c(16)))


# ---- floats ----


@lower
def splat_f32(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return splat(b, x, f32x8)


@lower
def spread_f32(b: ir.IRBuilder, x: ir.Value, like: ir.Value) -> ir.Value:
    return splat(b, x, like.type)


for _name, _method in (("add", "fadd"), ("sub", "fsub"), ("mul", "fmul"), ("div", "fdiv")):
    generic[f"{_name}_f32"] = lambda b, x, y, m=_method: getattr(b, m)(x, y)
for _name, _intrinsic in (("fma", "fma"), ("sqrt_f32", "sqrt"), ("rint_f32", "rint"), ("abs_f32", "fabs")):
    generic[_name] = lambda b, *v, n=_intrinsic: call(b, f"llvm.{n}.v{v[0].type.count}f32", v[0].type, *v)
for _name, _order in (("max_f32", ">"), ("min_f32", "<")):
    generic[_name] = lambda b, x, y, o=_order: b.select(b.fcmp_ordered(o, x, y), x, y)


@lower
def keep_below(b: ir.IRBuilder, a: ir.Value, start: ir.Value, limit: ir.Value, other: ir.Value) -> ir.Value:
    lanes = b.add(splat(b, start, i32x8), ir.Constant(i32x8, list(range(8))))
    return b.select(b.icmp_signed("<", lanes, splat(b, limit, i32x8)), a, other)


@lower
def power_of_two(b: ir.IRBuilder, n: ir.Value) -> ir.Value:
    bits = b.shl(b.add(n, constant(127, n.type)), constant(23, n.type))
    return b.bitcast(bits, ir.VectorType(f32, n.type.count))


def _tree(b: ir.IRBuilder, v: ir.Value, join: Callable[..., ir.Value]) -> ir.Value:
    for half in (4, 2, 1):
        v = join(pick(b, v, list(range(half))), pick(b, v, list(range(half, 2 * half))))
    return b.extract_element(v, ir.Constant(i32, 0))


@lower
def sum_f32(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    return _tree(b, v, b.fadd)


@lower
def sum_each(b: ir.IRBuilder, *v: ir.Value) -> ir.Value:
    vectors = list(v)
    for half in (4, 2, 1):  # halve all vectors and join them by twos: w0 = sums of v0, then of v1
        lanes = [i for i in range(16) if i % (2 * half) < half]
        low, high = (ir.Constant(ir.VectorType(i32, 8), [i + k for i in lanes]) for k in (0, half))
        pairs = zip(vectors[::2], vectors[1::2])
        vectors = [b.fadd(b.shuffle_vector(x, y, low), b.shuffle_vector(x, y, high)) for x, y in pairs]
    return vectors[0]


@lower
def max_lane(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    return _tree(b, v, lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y))


@lower
def widen_f16(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    return widen_half(b, b.trunc(bits, i32), f32)


@lower
def widen_bf16(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    return b.bitcast(b.shl(b.trunc(bits, i32), ir.Constant(i32, 16)), f32)


# ---- integers ----


@lower
def splat_i32(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return splat(b, x, i32x8)


for _name in ("add", "sub", "mul"):
    generic[f"{_name}_i32"] = lambda b, x, y, m=_name: getattr(b, m)(x, y)


@lower
def sum_i32(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    return _tree(b, v, b.add)


@lower
def to_f32(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    return b.sitofp(a, ir.VectorType(f32, a.type.count))


@lower
def to_i32(b: ir.IRBuilder, a: ir.Value) -> ir.Value:
    number = b.select(b.fcmp_ordered("ord", a, a), a, constant(0.0, f32x8))  # of a NaN, fptosi may make anything
    return b.fptosi(number, i32x8)


# ---- bytes and their products ----


@lower
def low_nibbles(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    return b.and_(v, constant(15, v.type))


@lower
def high_nibbles(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    return b.lshr(v, constant(4, v.type))


@lower
def low_six(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    return b.and_(v, constant(63, v.type))


@lower
def high_pairs(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """Shifted in 16 bits: some processors have no shift of bytes."""
    wide, parts = ir.VectorType(i16, x.type.count // 2), []
    for v, shift, mask in ((x, 6, 3), (y, 4, 12), (z, 2, 48)):
        moved = b.lshr(b.bitcast(v, wide), constant(shift, wide))
        parts.append(b.and_(b.bitcast(moved, v.type), constant(mask, v.type)))
    return b.or_(parts[0], b.or_(parts[1], parts[2]))


@lower
def single_bits(b: ir.IRBuilder, v: ir.Value, shift: ir.Value) -> ir.Value:
    moved = b.lshr(v, splat(b, b.trunc(shift, i8), v.type))
    return b.shl(b.and_(moved, constant(1, v.type)), constant(4, v.type))


@lower
def or_u8(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.or_(x, y)


@lower
def flip_sign_bits(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    return b.xor(v, constant(-128, i8x32))


def products(b: ir.IRBuilder, w: ir.Value, a: ir.Value) -> ir.Value:
    """The int32 sums of four neighbouring products of unsigned w and signed a."""
    return quads(b, b.mul(b.zext(w, ir.VectorType(i32, 32)), b.sext(a, ir.VectorType(i32, 32))))


def quads(b: ir.IRBuilder, wide: ir.Value) -> ir.Value:
    """The sums of four neighbours."""
    q = [pick(b, wide, list(range(j, 32, 4))) for j in range(4)]
    return b.add(b.add(q[0], q[1]), b.add(q[2], q[3]))


for _kind, _dot in (("pair", "dot_u4"), ("quad", "dot_u8")):
    generic[f"zero_{_kind}_sums"] = lambda b: constant(0, i32x8)
    generic[f"{_kind}_sums"] = lambda b, sums: sums
    generic[_dot] = lambda b, sums, w, a: b.add(sums, products(b, w, a))


@lower
def dot_i8(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    wide = b.sub(b.zext(w, ir.VectorType(i32, 32)), constant(128, ir.VectorType(i32, 32)))
    return b.add(sums, quads(b, b.mul(wide, b.sext(a, ir.VectorType(i32, 32)))))


@lower
def dot_i6(b: ir.IRBuilder, sums: ir.Value, w: ir.Value, a: ir.Value) -> ir.Value:
    wide = b.sub(b.zext(w, ir.VectorType(i32, 32)), constant(32, ir.VectorType(i32, 32)))
    return b.add(sums, quads(b, b.mul(wide, b.sext(a, ir.VectorType(i32, 32)))))


@lower
def centred(b: ir.IRBuilder, sums: ir.Value, offset: ir.Value) -> ir.Value:
    return sums
