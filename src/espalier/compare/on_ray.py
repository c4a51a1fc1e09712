"""Spread runs over a Ray cluster."""

from collections.abc import Callable, Sequence
from typing import Any

from espalier._errors import EspalierError


def spread(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    cpus: float = 1,
    gpus: float = 0,
    done: Callable[[int], None] | None = None,
) -> None:
    """Call a function once for each tuple of arguments, on the cluster that is there or on a local one.

    Args:
        function: importable on every machine; results are left in a folder that all machines share.
        arguments: picklable.
        cpus: of each call.
        gpus: of each call.
        done: called with the number of calls that ended.

    Raises:
        EspalierError: ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise EspalierError("--engine ray needs ray: pip install 'espalier[ray]'") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus)(function)
        left = [remote.remote(*values) for values in arguments]
        total = len(left)
        while left:
            ended, left = ray.wait(left, num_returns=1)
            ray.get(ended)
            if done is not None:
                done(total - len(left))
    finally:
        if started:
            ray.shutdown()
