"""Callers of one model, who take turns.

A stream holds its turn between its pieces, so other threads wait until it is done or closed. The thread that holds the turn
may begin something else with the model: that takes the turn over, and the older stream ends when it is asked to go on.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Queue:
    """One turn at a time. It may end in another thread than it began in: a generator is closed where it is collected."""

    def __init__(self) -> None:
        self._free = threading.Lock()
        self._owner: int | None = None
        self._number = 0

    @contextmanager
    def turn(self) -> Iterator[int]:
        """Wait for the turn and hold it; its number."""
        me = threading.get_ident()
        if self._owner != me:
            self._free.acquire()
            self._owner = me
        self._number += 1
        number = self._number
        try:
            yield number
        finally:
            if self.is_on(number):
                self._owner = None
                self._free.release()

    def is_on(self, number: int) -> bool:
        """Whether this turn has neither ended nor been taken over."""
        return self._owner is not None and self._number == number
