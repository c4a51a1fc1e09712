"""Spread runs over the devices of this machine, one process for each."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from typing import Any

from espalier._errors import EspalierError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def devices() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE, "").split(",")
    return named[:count] if len(named) >= count > 0 and named[0] else [str(i) for i in range(count)]


def spread(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    devices: Sequence[str],
    *,
    done: Callable[[int], None] | None = None,
) -> None:
    """Call a function once for each tuple of arguments, in as many processes as there are devices.

    Args:
        function: importable; results are left in a folder.
        arguments: picklable.
        devices: each process sees one of them alone.
        done: called with the number of calls that ended.

    Raises:
        EspalierError: a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for device in devices:
        free.put(device)
    pool = ProcessPoolExecutor(len(devices), mp_context=context, initializer=_take, initargs=(free,))
    try:
        calls = [pool.submit(function, *values) for values in arguments]
        for count, call in enumerate(as_completed(calls), start=1):
            call.result()
            if done is not None:
                done(count)
    except BrokenProcessPool:
        raise EspalierError(
            "a process was killed in the middle of a run (short of memory?): what is done is kept, start again to go on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _take(free: "SimpleQueue[str]") -> None:
    """One device for this process, before anything in it looks for one."""
    os.environ[VISIBLE] = free.get()
