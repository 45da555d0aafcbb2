"""Which of several forms each item gets, so that all fit into a room and lose least: a knapsack with one choice each.

    minimise  sum over items of loss[item][form]      while  sum over items of cost[item][form] <= room

Dynamic programming over the room that the cheapest forms leave, cut into cells: best[c] is the least loss of the items so
far with c cells spent. Costs are rounded up to whole cells, unless exact cells are few enough; what room that leaves is then
spent on single steps, the one that lowers the loss most first. Source: Kellerer, Pferschy and Pisinger, "Knapsack Problems",
2004, chapter 11.
"""

from collections.abc import Hashable, Mapping
from math import gcd
from typing import TypeVar

import numpy as np

CELLS = 1 << 14
Item = TypeVar("Item", bound=Hashable)
Form = TypeVar("Form", bound=Hashable)


def choose(
    losses: Mapping[Item, Mapping[Form, float]], costs: Mapping[Item, Mapping[Form, int]], room: int
) -> dict[Item, Form]:
    """The form of each item.

    Args:
        losses, costs: Of each form that an item may have, by item and form; costs are whole numbers.
        room: What they may cost together.

    Raises:
        ValueError: if not even the cheapest fit; its one argument is what these cost.
    """
    cheapest = {item: min(of.values()) for item, of in costs.items()}
    left = room - sum(cheapest.values())
    if left < 0:
        raise ValueError(room - left)
    extra = {item: {form: cost - cheapest[item] for form, cost in of.items()} for item, of in costs.items()}
    unit = max(1, gcd(*(cost for of in extra.values() for cost in of.values())))
    if left > unit * CELLS:
        unit = -(-left // CELLS)
    cells = left // unit + 1
    best = np.zeros(cells)
    taken: list[tuple[Item, list[Form], np.ndarray]] = []
    for item, of in losses.items():
        forms = [form for form in of if extra[item][form] <= left]
        tried = np.full((len(forms), cells), np.inf)
        for row, form in zip(tried, forms):
            used = -(-extra[item][form] // unit)
            if used < cells:
                row[used:] = best[: cells - used] + of[form]
        which = np.argmin(tried, axis=0).astype(np.uint8)
        taken.append((item, forms, which))
        best = np.take_along_axis(tried, which[None].astype(np.intp), 0)[0]
    chosen: dict[Item, Form] = {}
    cell = cells - 1
    for item, forms, which in reversed(taken):
        chosen[item] = forms[which[cell]]
        cell -= -(-extra[item][chosen[item]] // unit)
    left -= sum(extra[item][form] for item, form in chosen.items())
    while step := _best_step(losses, extra, chosen, left):
        item, form = step
        left -= extra[item][form] - extra[item][chosen[item]]
        chosen[item] = form
    return {item: chosen[item] for item in losses}


def _best_step(
    losses: Mapping[Item, Mapping[Form, float]],
    costs: Mapping[Item, Mapping[Form, int]],
    chosen: Mapping[Item, Form],
    left: int,
) -> tuple[Item, Form] | None:
    """The change of one item that lowers the loss most and costs no more than what is left."""
    gains = [
        (losses[item][now] - loss, item, form)
        for item, now in chosen.items()
        for form, loss in losses[item].items()
        if loss < losses[item][now] and costs[item][form] - costs[item][now] <= left
    ]
    return max(gains, key=lambda gain: gain[0])[1:] if gains else None
