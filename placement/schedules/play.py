"""The one pure kernel that plays a fixed order of tasks: arrays in, start and end times out.

A task starts at the latest of the end of the task before it on its own stream (streams are serial and keep
their order) and, over its dependencies, their end plus the lag of the edge. That is one max-plus pass over a
topological order, so the order is found once and may be re-timed for any number of duration vectors.

Compiled with numba where it is installed, plain Python over lists otherwise; both only compare and add in the
same sequence, so they give the same bits.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WORTH_LOADING_NUMBA = 200_000  # tasks; plain Python plays about a million a second, numba loads in about one


def topological_order(
    previous: Ints, dependency_offsets: Ints, dependency_task: Ints, compiled: bool | None = None
) -> Ints:
    """Tasks in an order in which everything a task waits for stands before it (Kahn 1962).

    `previous` [tasks]: the task before this one on its stream, -1 for the first. Task t depends on
    `dependency_task[dependency_offsets[t] : dependency_offsets[t + 1]]`. Tasks on or behind a cycle are left
    out, so the result is shorter than `previous` exactly when there is a cycle.
    `compiled` None takes numba where it is installed.
    """
    tasks = len(previous)
    counts = np.diff(dependency_offsets)
    waiting = counts + (previous >= 0)
    following = np.full(tasks, -1, dtype=np.int64)
    has_previous = np.flatnonzero(previous >= 0)
    following[previous[has_previous]] = has_previous
    by_source = np.argsort(dependency_task, kind="stable")
    waiting_tasks = np.repeat(np.arange(tasks), counts)[by_source]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(dependency_task, minlength=tasks))])
    order = np.zeros(tasks, dtype=np.int64)
    (filled,), found = call(_kahn, (waiting, following, offsets, waiting_tasks), (order,), compiled)
    return filled[:found]


def earliest_times(
    order: Ints,
    previous: Ints,
    dependency_offsets: Ints,
    dependency_task: Ints,
    dependency_lag_s: Floats,
    duration_s: Floats,
    compiled: bool | None = None,
) -> tuple[Floats, Floats]:
    """(start_s, end_s), each [tasks], of every task played as early as possible, in the given `order`."""
    columns = (order, previous, dependency_offsets, dependency_task, dependency_lag_s, duration_s)
    empty = np.zeros(len(order))
    (start_s, end_s), _ = call(_earliest, columns, (empty, empty.copy()), compiled)
    return start_s, end_s


def _kahn(waiting: Any, following: Any, offsets: Any, successor: Any, order: Any) -> int:
    found = 0
    for task in range(len(waiting)):
        if waiting[task] == 0:
            order[found] = task
            found += 1
    head = 0
    while head < found:
        task = order[head]
        head += 1
        after = following[task]
        if after >= 0:
            waiting[after] -= 1
            if waiting[after] == 0:
                order[found] = after
                found += 1
        for edge in range(offsets[task], offsets[task + 1]):
            after = successor[edge]
            waiting[after] -= 1
            if waiting[after] == 0:
                order[found] = after
                found += 1
    return found


def _earliest(
    order: Any, previous: Any, offsets: Any, source: Any, lag_s: Any, duration_s: Any,
    start_s: Any, end_s: Any,
) -> int:
    for task in order:
        begin = 0.0
        before = previous[task]
        if before >= 0:
            begin = end_s[before]
        for edge in range(offsets[task], offsets[task + 1]):
            ready = end_s[source[edge]] + lag_s[edge]
            if ready > begin:
                begin = ready
        start_s[task] = begin
        end_s[task] = begin + duration_s[task]
    return len(order)


def call(
    kernel: Callable[..., int], inputs: tuple[NDArray[Any], ...], outputs: tuple[NDArray[Any], ...],
    compiled: bool | None,
) -> tuple[tuple[NDArray[Any], ...], int]:
    """The filled `outputs` and the kernel's result; plain Python runs over lists, many times faster there.

    Left to choose, a short program stays in plain Python while numba is not loaded: loading it takes longer.
    """
    if compiled is None and "numba" not in sys.modules:
        compiled = None if max(len(column) for column in inputs) >= WORTH_LOADING_NUMBA else False
    fast = None if compiled is False else _compile(kernel)
    if fast is not None:
        return outputs, int(fast(*inputs, *outputs))
    if compiled:
        raise RuntimeError("numba is not installed, so there is no compiled player; install the extra 'fast'")
    lists = [column.tolist() for column in outputs]
    result = kernel(*(column.tolist() for column in inputs), *lists)
    arrays = (np.array(filled, dtype=like.dtype) for filled, like in zip(lists, outputs, strict=True))
    return tuple(arrays), result


def compiles() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


@functools.cache
def _compile(kernel: Callable[..., int]) -> Callable[..., int] | None:
    try:
        import numba
    except ImportError:
        return None
    fast: Callable[..., int]
    try:
        fast = numba.njit(cache=True)(kernel)
    except RuntimeError:  # no folder to cache in
        fast = numba.njit(kernel)
    return fast
