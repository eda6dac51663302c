"""How many computations run side by side, and threads for those that need no process of their own.

Each computes on one thread, because another number of threads gives other bits, and because threads
that share out one computation wait for each other on a busy machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, Literal, TypeVar

from joblib import cpu_count  # minds affinity and a container's CPU limit


def resolve_workers(workers: Literal["auto"] | int, device: str) -> int:
    """How many ``runtime.workers`` means: ``auto`` is one per usable core on CPU, one per GPU.

    With 0, this process trains: one at a time.

    One thread each: two workers of one thread finish sooner than one of two, as
    ``benchmarks/workers.py`` measures.
    """
    if workers != "auto":
        return max(1, workers)
    return int(cpu_count()) if device == "cpu" else count_gpus(device)


def count_gpus(device: str) -> int:
    """How many GPUs a device's name stands for, at least 1."""
    import torch

    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


Result = TypeVar("Result")


class InOrder(Generic[Result]):
    """Jobs whose results are wanted in order, and of which few may wait, for what they hold.

    Args:
        threads: that run them.
        most: how many are in work at a time.
        memory: bytes that they may hold together; a single one may hold more.
    """

    def __init__(self, threads: Executor, most: int, memory: int) -> None:
        self._threads, self._most, self._memory = threads, most, memory
        self._running: deque[tuple[Future[Result], int]] = deque()
        self._done: list[Result] = []

    def put(self, size: int, job: Callable[..., Result], *arguments: object) -> None:
        """Add a job that holds so many bytes, as soon as there is room.

        Raises:
            Exception: what an earlier job raised.
        """
        while self._running and not self._fits(size):
            self._done.append(self._running.popleft()[0].result())
        self._running.append((self._threads.submit(job, *arguments), size))

    def _fits(self, size: int) -> bool:
        held = sum(others for _, others in self._running)
        return len(self._running) < self._most and held + size <= self._memory

    def results(self) -> list[Result]:
        """Of all jobs, in the order in which they were added; raises what one of them raised."""
        return [*self._done, *(job.result() for job, _ in self._running)]


@contextmanager
def single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute side by side, each with one thread of torch's.

    For forward passes, which hold Python's lock for hardly any of their time: a process would cost
    seconds to import torch. What was still to be done is given up if this is left by an error.

    Args:
        count: at least 1.
    """
    import torch

    before = torch.get_num_threads()
    # OpenMP keeps the number for each thread; what new threads begin with is for all.
    with ThreadPoolExecutor(count, "pass", torch.set_num_threads, (1,)) as threads:
        try:
            yield threads
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(before)
