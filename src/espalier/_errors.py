"""The one exception users meet, and the pieces its messages are made of."""

import difflib
import re
from collections.abc import Iterable, Sequence


class EspalierError(ValueError):
    """What was asked cannot be done; the message says what was asked, why not, and what to do.

    The command line prints the message on one line and exits with status 2; every other exception is a bug
    and keeps its traceback.
    """


class Failed(EspalierError):
    """A run that will not go on: it is marked failed in its folder."""


class CheckpointError(EspalierError):
    """A file or folder cannot be read as a checkpoint, or cannot be written."""


def near(name: str, known: Iterable[str], count: int = 3) -> str:
    """Words that suggest the names closest to `name`: " Did you mean 'a' or 'b'?", or "" when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""


def near_glob(pattern: str, known: Sequence[str], count: int = 3) -> str:
    """Words that suggest names for a glob on dotted names that matches none; never "" if a name is known.

    Tried in turn: the names that hold the pattern, for whoever forgot the stars; names close to it as a
    whole, if it has no stars; names with a component close to one of the pattern; the first names there are.
    """
    holding = [name for name in known if pattern and pattern in name]
    if holding:
        return f" A pattern must match the whole name: '*{pattern}*' matches {listing(holding, count)}."
    if not (pieces := [piece for piece in re.split(r"[^\w-]+", pattern) if piece]) or not known:
        return _some(known, count)
    if not any(star in pattern for star in "*?[") and (close := near(pattern, known, count)):
        return close
    components = dict.fromkeys(part for name in known for part in name.split("."))
    for piece in sorted(pieces, key=lambda piece: (piece in components, -len(piece))):
        for part in difflib.get_close_matches(piece, components, n=1, cutoff=0.6):
            if found := [name for name in known if part in name.split(".")]:
                return f" Did you mean {part!r}, as in {listing(found, count)}?"
    return _some(known, count)


def _some(known: Sequence[str], count: int) -> str:
    return f" Names are {listing(known, count)}." if known else ""


def plural(count: int, noun: str) -> str:
    """A count and its noun, which takes an s: "1 tensor", "3,000 tensors"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listing(names: Iterable[str], limit: int = 5) -> str:
    """Names for a message: "a, b, c and 12 more"."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def first_line(error: BaseException) -> str:
    """What somebody else's exception says, in one line; its type if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
