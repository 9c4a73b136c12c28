"""A function of every chunk, in this process or in several, in the order of the chunks."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.readers import Chunk

Result = TypeVar("Result")

_PARALLELISM = "TOKENIZERS_PARALLELISM"


def map_chunks(
    chunks: Iterable[Chunk], function: Callable[[Chunk], Result], workers: int
) -> Iterator[Result]:
    """``function`` of ``chunks`` in ``workers`` processes, in the order of the chunks.

    At most four chunks per worker are in flight, so memory does not grow with the input.

    Raises:
        PrepareError: a worker died.
    """
    if workers == 1:
        with _one_core():
            yield from map(function, chunks)
        return
    # spawn: a fork of a process that has started threads (torch, tokenizers) can deadlock.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (function,))
    pending: deque[Future[Result]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(_work, chunk))
            if len(pending) >= 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise PrepareError(
            "a worker process died (out of memory? try fewer --workers; a script of your own "
            "must call prepare() under `if __name__ == '__main__':`)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_core() -> Iterator[None]:
    """In here tokenizers starts no threads, which this process may not survive a fork with."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLELISM]
        else:
            os.environ[_PARALLELISM] = before


_function: Callable[[Chunk], Any]


def _start_worker(function: Callable[[Chunk], Any]) -> None:
    global _function
    _function = function
    os.environ[_PARALLELISM] = "false"  # one core per worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A parent killed by SIGKILL cannot end its workers, and they would wait for work forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(chunk: Chunk) -> Any:
    return _function(chunk)
