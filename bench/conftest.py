"""What pytest-benchmark's files say of a machine: its processor, and the versions of what compiles the kernels."""

from importlib.metadata import version
from typing import Any

from engine.threads import default_threads
from kernels.target import host


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Add versions, the level of instructions and the threads; leave the machine's name out."""
    machine_info.pop("node", None)
    machine_info |= {name: version(name) for name in ("numba", "llvmlite", "numpy")}
    machine_info |= {"level": host().level, "threads": default_threads()}
