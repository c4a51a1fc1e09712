"""Several processes, each with its share of the batches: the one place where they come together.

They are joined where `torch.distributed` is initialized: by `accelerate launch` or torchrun in front of a command, or
by the program that uses the library. Every process is given the same network and data, and makes the same calls.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from espalier._errors import EspalierError

T = TypeVar("T")


def place() -> tuple[int, int]:
    """(number of this process, processes); (0, 1) alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return place()[0] == 0


def share(batches: Iterable[T]) -> Iterator[T]:
    """What falls to this process: one batch in as many as there are processes."""
    first, step = place()
    return islice(iter(batches), first, None, step)


def summed(total: Tensor) -> Tensor:
    """The sum over all processes, in place; give it float64, so that it is that of one process to rounding."""
    if place()[1] > 1:
        dist.all_reduce(total)
    return total


def align(tensors: Iterable[Tensor]) -> None:
    """Give every process the main one's tensors, in place; where processes see other examples, they drift apart."""
    if place()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def from_main(make: Callable[[], T]) -> T:
    """What the main process makes, in every process: state that is read from disk, or a step none may take twice.

    Raises:
        EspalierError: what `make` raised, in every process.
    """
    if place()[1] == 1:
        return make()
    problem: EspalierError | None = None
    made: list[object] = [None, None]
    if is_main():
        try:
            made = [make(), None]
        except EspalierError as error:
            problem, made = error, [None, str(error)]
    dist.broadcast_object_list(made)
    if made[1] is not None:
        raise problem or EspalierError(str(made[1]))
    return made[0]  # type: ignore[return-value]
