"""python -m engine.warmup: compile every kernel ahead, so that no model has to wait for one."""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import kernels
from engine import options


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = options.parser("warmup", "Compile every kernel ahead and keep it for later starts.")
    made.add_argument("--cache", type=Path, metavar="DIR", help="where compiled kernels are kept")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return options.run(_warm_up, parser(), argv)


def _warm_up(given: argparse.Namespace) -> None:
    from engine import kernel_cache
    from kernels.registry import kernels as registered

    for module in iter_modules(kernels.__path__):
        if not module.name.startswith(("lower_", "numba_")):
            import_module(f"kernels.{module.name}")
    store = kernel_cache.use(given.cache)
    seconds = kernel_cache.prepare(registered.values())
    if given.json:
        options.write_json({"kernels": len(registered), "seconds": seconds, "folder": str(store.folder)})
    else:
        sys.stdout.write(f"{len(registered)} kernels ready in {store.folder}\n")


if __name__ == "__main__":
    sys.exit(main())
