"""The processor that kernels are compiled for, as Numba would choose it, found without importing Numba.

`NUMBA_CPU_NAME`, `NUMBA_CPU_FEATURES` and `NUMBA_ENABLE_AVX=0` choose another one, as they do for Numba; a test holds that
both agree. What a lowering may use is read from here, never from the processor: with `NUMBA_CPU_NAME=generic` the processor
still has AVX2 and the compiler does not.
"""

import os
from dataclasses import dataclass
from functools import cache

import llvmlite.binding as llvm


@dataclass(frozen=True, slots=True)
class Target:
    """A processor: LLVM's triple, its name, and its features, such as `+avx2,+fma,-sse4a`."""

    triple: str
    cpu: str
    features: str

    def has(self, *features: str) -> bool:
        """Whether all of these features are on."""
        on = {f[1:] for f in self.features.split(",") if f.startswith("+")}
        return on.issuperset(features)

    @property
    def x86(self) -> bool:
        """Whether this is an x86-64."""
        return self.triple.startswith("x86_64")

    @property
    def avx2(self) -> bool:
        """Whether 32-byte integer vectors, fused multiply-add and half floats are there (x86-64 since 2013)."""
        return self.x86 and self.has("avx2", "fma", "f16c")

    @property
    def vnni(self) -> bool:
        """Whether `vpdpbusd` is there on 32-byte vectors: with AVX-512, or without (Intel since 2021, AMD since 2024)."""
        return self.avx2 and (self.has("avx512vnni", "avx512vl") or self.has("avxvnni"))

    @property
    def wide(self) -> bool:
        """Whether there are 32 vectors of 64 bytes, and `vpdpbusd` on them."""
        return self.vnni and self.has("avx512vnni", "avx512vl", "avx512bw")

    @property
    def neon_dot(self) -> bool:
        """Whether NEON's `sdot` is there (64-bit Arm since v8.2)."""
        return self.triple.startswith(("aarch64", "arm64")) and self.has("dotprod")

    @property
    def level(self) -> str:
        """The name of the lowering that this target gets."""
        return "vnni" if self.vnni else "avx2" if self.avx2 else "neon" if self.neon_dot else "generic"


@cache
def host() -> Target:
    """The target of this process."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name = os.environ.get("NUMBA_CPU_NAME") or None
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name and name.lower() == "generic" else _host_features()
    return Target(llvm.get_process_triple(), name or llvm.get_host_cpu_name(), features)


def _host_features() -> str:
    try:
        found = llvm.get_host_cpu_features()
    except RuntimeError:  # LLVM can't tell: the processor's name is all there is
        return ""
    if os.environ.get("NUMBA_ENABLE_AVX") == "0":
        found.update({name: False for name in found if name.startswith("avx")})
    return found.flatten()


def target_machine(target: Target) -> llvm.TargetMachine:
    """LLVM's code generator for a target, set as Numba sets its own."""
    relocation = "static" if target.x86 else "default"
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc=relocation, codemodel="jitdefault", jit=True
    )
