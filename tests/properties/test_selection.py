"""Selections for any set of names and patterns."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier._errors import EspalierError
from espalier.checkpoint import open_checkpoint
from espalier.selection import select

quick = settings(deadline=None, max_examples=60)

names = st.lists(
    st.builds(
        lambda a, b, c: f"{a}.{b}.{c}",
        *[st.sampled_from(s) for s in (("x", "y"), "012", ("weight", "bias", "w"))],
    ),
    min_size=1,
    max_size=8,
    unique=True,
)
patterns = st.lists(
    st.sampled_from(["*", "x.*", "y.?.weight", "*.0.*", "*bias", "z*", "[xy].1.w"]), max_size=3
)


@quick
@given(names, patterns, patterns)
def test_include_and_exclude_partition_the_scope(keys, include, exclude):
    checkpoint = open_checkpoint({key: torch.full((2, 3), 1.0) for key in keys})
    scope = list(select(checkpoint, "all").names)
    assert scope == keys

    def chosen(**options: list[str]) -> set[str]:
        try:
            return set(select(checkpoint, "all", **options).names)
        except EspalierError:
            return set()

    try:
        selection = select(checkpoint, "all", include, exclude)
    except EspalierError:
        return
    assert list(selection.names) == [key for key in keys if key in selection.names]  # file order
    if include:
        assert set(selection.names) <= chosen(include=include)
    if exclude:
        assert set(selection.names) <= chosen(exclude=exclude)
        removed = set(keys) - chosen(exclude=exclude)
        assert not removed & set(selection.names)
    assert selection.entries == 6 * len(selection.names)
    assert selection.parameters == 6 * len(keys)


@quick
@given(names)
def test_the_scopes_are_nested(keys):
    checkpoint = open_checkpoint({key: torch.ones(2, 2) for key in keys})

    def of(scope) -> set[str]:
        try:
            return set(select(checkpoint, scope).names)
        except EspalierError:
            return set()

    assert of("weights") <= of("all") and of("paper") <= of("all")
    assert of("paper") == {key for key in keys if key.endswith((".weight", ".bias"))}
