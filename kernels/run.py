"""The run block: what varies from run to run, a small array of int64 that every kernel can read.

    run[ROWS]         rows (tokens) in this run
    run[LOGIT_ROWS]   how many of them want logits
    run[STOP]         not 0: leave at the next step
    run[FIRST + WIDTH * t + ...]   of row t: its TOKEN, its POSITION in its sequence, the SLOT of that sequence in the cache,
                                   and LOGIT_ROW: the t-th row that wants logits
"""

import numpy as np

ROWS, LOGIT_ROWS, STOP = 0, 1, 2
FIRST, WIDTH = 8, 4
TOKEN, POSITION, SLOT, LOGIT_ROW = 0, 1, 2, 3


def run_block(capacity: int) -> np.ndarray:
    """An empty run block for at most `capacity` rows."""
    return np.zeros(FIRST + WIDTH * capacity, np.int64)
