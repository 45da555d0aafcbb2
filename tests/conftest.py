"""Tests keep compiled kernels in a folder of their own, one for the whole run and for the processes that it starts."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Choose the folder before anything is compiled."""
    folder = tempfile.mkdtemp(prefix="intengine-")
    os.environ["INTENGINE_CACHE"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))

    from engine import kernel_cache

    kernel_cache.use()


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT interrupts, here and in processes started here, also where whoever started the tests passed on to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
