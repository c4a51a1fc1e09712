"""The one exception users meet, and the pieces its messages are made of."""

import difflib
from collections.abc import Iterable


class EspalierError(ValueError):
    """What was asked cannot be done; the message says what was asked, why not, and what to do.

    The command line prints the message on one line and exits with status 2; every other exception is a bug
    and keeps its traceback.
    """


class CheckpointError(EspalierError):
    """A file or folder cannot be read as a checkpoint, or cannot be written."""


def near(name: str, known: Iterable[str], count: int = 3) -> str:
    """Words that suggest the names closest to `name`: " Did you mean 'a' or 'b'?", or "" when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""


def listing(names: Iterable[str], limit: int = 5) -> str:
    """Names for a message: "a, b, c and 12 more"."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def first_line(error: BaseException) -> str:
    """What somebody else's exception says, in one line; its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
