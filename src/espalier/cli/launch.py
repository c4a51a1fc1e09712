"""Commands started by `accelerate launch` or torchrun: the processes join before, and part after."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any

import typer

from espalier._errors import EspalierError

if TYPE_CHECKING:
    from accelerate import PartialState

Command = Callable[..., None]


def several(command: Command) -> Command:
    """A command whose data may be shared out over processes; the main one alone prints and writes files."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        with _joined():
            command(**arguments)

    return run


def alone(command: Command) -> Command:
    """A command for one process, which says so where there are more."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        if _started() > 1:
            raise EspalierError(
                f"this command runs in one process, and {_started()} were started: start it without accelerate "
                "launch or torchrun; train, finetune, and path, plane, spectrum and project of landscape share data out"
            )
        command(**arguments)

    return run


def _started() -> int:
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def _joined() -> Iterator[None]:
    if _started() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        with nullcontext() if state.is_main_process else _quiet():
            yield
    except EspalierError as error:
        if state.is_main_process:
            raise
        raise EspalierError(f"process {state.process_index}: {error}") from None
    except typer.Exit:  # after its work: some runs failed
        _part(state)
        raise
    else:
        _part(state)
    finally:
        state.destroy_process_group()


def _part(state: "PartialState") -> None:
    """Wait for the others, where they are still there.

    A process that ends just after its last collective may abort: gloo's threads outlive their group where it had a
    replica (torch 2.15), and one may still hold a tensor while the interpreter ends.
    """
    with suppress(RuntimeError):  # another has failed, and says so
        state.wait_for_everyone()


@contextmanager
def _quiet() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
