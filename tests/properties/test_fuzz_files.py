"""Whatever the bytes: a checkpoint or a CheckpointError, never another exception, never much memory."""

import io
import json
import resource
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from espalier._errors import CheckpointError
from espalier.checkpoint import open_checkpoint, rewrite

KINDS = ["safetensors", "sparse", "zip", "legacy", "index"]
MEMORY = 256 << 10  # KiB that reading files of some kilobytes may add to the peak of the process


@cache
def example(kind: str) -> bytes:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 50, generator=generator)
    half = weight.masked_fill(weight < 0, 0).to(torch.bfloat16)
    state = {
        "w": weight.masked_fill(weight.abs() < 1.5, 0),
        "half": half,
        "n": torch.tensor(3),
        "t": weight.t(),
    }
    if kind in ("zip", "legacy"):
        file = io.BytesIO()
        torch.save({"epoch": 1, "state_dict": state}, file, _use_new_zipfile_serialization=kind == "zip")
        return file.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        if kind == "index":
            return json.dumps(
                {"metadata": {}, "weight_map": {"a": "s.safetensors", "b": "s.safetensors"}}
            ).encode()
        rewrite(open_checkpoint(state), path, lambda _, tensor: tensor, {"k": "v"}, sparse=kind == "sparse")
        return path.read_bytes()


place = st.floats(0, 1, exclude_max=True)
TOKENS = [
    b"9",
    b"-",
    b"[",
    b'"',
    b"{}",
    b"null",
    b"1e9",
    b"\xff" * 8,
    b"\0" * 8,
    b"K\x00",
    b"J\xff\xff\xff\x7f",
    b"PK",
]


def overwrite(at: float, what: bytes) -> Callable[[bytes], bytes]:
    def mutate(data: bytes) -> bytes:
        start = int(at * len(data))
        return data[:start] + what + data[start + len(what) :]

    return mutate


def splice(source: float, length: int, target: float) -> Callable[[bytes], bytes]:
    def mutate(data: bytes) -> bytes:
        start, end = int(source * len(data)), int(target * len(data))
        return data[:end] + data[start : start + length] + data[end:]

    return mutate


def cut(at: float, length: int) -> Callable[[bytes], bytes]:
    def mutate(data: bytes) -> bytes:
        start = int(at * len(data))
        return data[:start] + data[start + length :]

    return mutate


# Squared places fall more often near the beginning, where headers and pickles are.
early = st.one_of(place, place.map(lambda at: at * at * at))
mutations = st.lists(
    st.one_of(
        st.builds(overwrite, early, st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=4))),
        st.builds(splice, early, st.integers(1, 64), early),
        st.builds(cut, early, st.sampled_from([1, 2, 8, 100, 1 << 20])),
    ),
    min_size=1,
    max_size=3,
)


def survive(kind: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("model.safetensors.index.json" if kind == "index" else "x.bin")
        path.write_bytes(data)
        save_file({"a": torch.ones(1), "b": torch.ones(1)}, Path(folder) / "s.safetensors")
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint:
                for _ in checkpoint.chunks(name):
                    pass
                checkpoint[name].shape  # noqa: B018
        except CheckpointError as error:
            assert "\n" not in str(error) and folder in str(error)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(mutate=mutations)
def test_mutated_files_are_read_or_refused(kind: str, mutate: list[Callable[[bytes], bytes]]) -> None:
    data = example(kind)
    for step in mutate:
        data = step(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    survive(kind, data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_anywhere_are_refused(kind: str) -> None:
    data = example(kind)
    for length in [*range(0, 64), *range(64, len(data), max(1, len(data) // 60))]:
        survive(kind, data[:length])


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    for start in (b"", b"PK\x03\x04", b"\x80\x02", len(data).to_bytes(8, "little") + b"{"):
        survive("any", start + data)
