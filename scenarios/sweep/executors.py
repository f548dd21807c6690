"""Who evaluates the batches of a sweep: this process, processes of this machine, or a Dask cluster.

All are executors of `concurrent.futures`; anything else that has its `submit` will do as well.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from scenarios.errors import Place, ScenarioError, one_line

Result = TypeVar("Result")
IN_FLIGHT_PER_WORKER = 3  # batches handed out: one at work, one waiting, one on its way back
UNKNOWN_WORKERS = 16  # taken for executors that do not tell how many they have
CONNECT_S = 20.0


class Submits(Protocol):
    """What a sweep asks of an executor."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """A future with `add_done_callback` and `result`."""


class Inline(Executor):
    """Work done in this process, when it is submitted."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def finished(
    executor: Submits, function: Callable[..., Result], arguments: Iterator[tuple[Any, ...]], most: int
) -> Iterator[Result]:
    """The results of a function for many arguments, as they come, with at most `most` of them handed out at a time.

    Raises what the function raised, and leaves the rest.
    """
    done: SimpleQueue[Any] = SimpleQueue()
    out = 0
    for given in arguments:
        executor.submit(function, *given).add_done_callback(done.put)
        out += 1
        if out >= most:
            out -= 1
            yield done.get().result()
    for _ in range(out):
        yield done.get().result()


@contextmanager
def local(workers: int) -> Iterator[Executor]:
    """Processes of this machine; with one worker this process itself."""
    if workers == 1:
        yield Inline()
        return
    import multiprocessing

    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _begin_worker() -> None:
    """A worker leaves an interrupt to its parent, and ends when that is gone, however it went."""
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextmanager
def dask(address: str, workers: int | None) -> Iterator[tuple[Executor, int]]:
    """A Dask cluster and how many threads it has: the one at `address`, or processes of this machine where none is
    given. Raises ScenarioError where Dask is not installed or the cluster does not answer."""
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise ScenarioError.at(Place("--executor dask"), "needs Dask, which is not installed; install the extra: "
                                                         "pip install 'whatif-planner[distributed]'") from None
    place = Place(f"--address {address}" if address else "--executor dask")
    cluster = None
    try:
        if not address:
            cluster = distributed.LocalCluster(workers or cpus(), threads_per_worker=1, dashboard_address=None)
        client = distributed.Client(address or cluster, timeout=CONNECT_S)
    except (OSError, ValueError, TypeError, ImportError) as error:
        if cluster is not None:
            cluster.close()
        raise ScenarioError.at(place, f"no Dask cluster answers: {one_line(str(error))[:200]}; give the scheduler's "
                                      "address, such as tcp://host:8786") from None
    try:
        threads = sum(client.nthreads().values())
        if not threads:
            raise ScenarioError.at(place, "the cluster has no workers; start some: dask worker ADDRESS")
        yield client.get_executor(pure=False), threads
    finally:
        client.close()
        if cluster is not None:
            cluster.close()
