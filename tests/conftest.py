"""Tests keep compiled kernels in a folder of their own, one for the whole run and for the processes that it starts."""

import os
import shutil
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Choose the folder before anything is compiled."""
    folder = tempfile.mkdtemp(prefix="intengine-")
    os.environ["INTENGINE_CACHE"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))

    from engine import kernel_cache

    kernel_cache.use()
