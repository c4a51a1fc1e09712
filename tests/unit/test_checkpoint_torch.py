import argparse
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from espalier._errors import CheckpointError
from espalier.checkpoint import open_checkpoint
from espalier.checkpoint.stored import Raw, Resident, StoredCheckpoint


class Attack:
    def __reduce__(self) -> Any:
        return os.system, ("touch espalier_was_attacked",)


def saved(path: Path, value: object, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def example() -> dict[str, torch.Tensor]:
    base = torch.arange(12.0).view(3, 4)
    return {
        "w": base,
        "turned": base.t(),
        "row": base[1],
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "same": base,
        "steps": torch.tensor(7),
        "parameter": nn.Parameter(torch.ones(2)),
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_views_aliases_and_scalars_come_back(tmp_path: Path, legacy: bool) -> None:
    checkpoint = open_checkpoint(saved(tmp_path / "x.pt", example(), legacy))
    assert isinstance(checkpoint, StoredCheckpoint)
    assert checkpoint.aliases == {"same": "w"}
    assert list(checkpoint) == [name for name in example() if name != "same"]
    assert isinstance(checkpoint.stored("w"), Resident if legacy else Raw)
    for name, tensor in example().items():
        read = checkpoint.state_dict()[name]
        assert read.dtype == tensor.dtype and read.equal(tensor) and not read.requires_grad
    assert torch.cat(list(checkpoint.chunks("turned", 5))).tolist() == example()["turned"].flatten().tolist()


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "optimizer": {"state": {0: torch.ones(9)}}, "state_dict": state},
        lambda state: {"rng": torch.ones(3), "model_state": state},
        lambda state: {"model": {"state_dict": state}, "ema": {"w": torch.ones(1)}},
        lambda state: {"net": state, "params": {"w": torch.ones(1)}},
        lambda state: {"teacher_weights": state},
    ],
)
def test_the_weights_are_found_where_scripts_keep_them(tmp_path: Path, nest: Any) -> None:
    checkpoint = open_checkpoint(saved(tmp_path / "x.pt", nest({"w": torch.tensor([1.0, 2.0])})))
    assert list(checkpoint) == ["w"] and checkpoint["w"].tolist() == [1, 2]


def test_prefixes_of_wrappers_go_only_when_all_names_have_them(tmp_path: Path) -> None:
    both = {"module._orig_mod.a": torch.ones(1), "module._orig_mod.b": torch.ones(1)}
    assert list(open_checkpoint(saved(tmp_path / "x.pt", both))) == ["a", "b"]
    one = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(open_checkpoint(saved(tmp_path / "x.pt", one))) == ["module.a", "b"]


def test_a_checkpoint_of_torch_prune_reads_as_the_product(tmp_path: Path) -> None:
    linear = nn.Linear(4, 3)
    prune.l1_unstructured(linear, "weight", 0.5)
    module = nn.Sequential(linear)
    pruned = linear.weight.detach()
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    path = saved(tmp_path / "x.pt", {"state_dict": state})
    checkpoint = open_checkpoint(path)
    assert sorted(checkpoint) == ["0.bias", "0.weight"]
    assert checkpoint["0.weight"].equal(pruned)
    assert not torch.signbit(checkpoint["0.weight"][checkpoint["0.weight"] == 0]).any()
    assert torch.cat(list(checkpoint.chunks("0.weight", 5))).equal(pruned.flatten())
    assert checkpoint.layout is not None and checkpoint.layout.files["x.pt"] == tuple(checkpoint)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (Attack(), "posix.system"),
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.float64(3), r"numpy\._core\.multiarray\.scalar"),
        (bytearray(3), "builtins.bytearray"),
        (nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
    ],
)
def test_a_pickle_that_wants_to_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: object, named: str, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "x.pt", {"w": torch.ones(1), "extra": extra}, legacy)
    with pytest.raises(
        CheckpointError, match=f"refused: .*'{named}'.* never runs code .*save_file"
    ) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "espalier_was_attacked").exists()


def test_what_holds_no_tensors_says_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no dict of tensors in it, found a dict with keys epoch, args"):
        open_checkpoint(saved(tmp_path / "x.pt", {"epoch": 1, "args": [2]}))
    with pytest.raises(CheckpointError, match="no dict of tensors in it, found an empty dict; where"):
        open_checkpoint(saved(tmp_path / "x.pt", {}))
    with pytest.raises(CheckpointError, match="no dict of tensors in it, found list"):
        open_checkpoint(saved(tmp_path / "x.pt", [torch.ones(1)]))


def test_other_zip_archives_are_told_apart(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/hello", "hello")
    with pytest.raises(CheckpointError, match=r"zip archive without data\.pkl"):
        open_checkpoint(tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
        archive.writestr("x/constants.pkl", "")
    with pytest.raises(CheckpointError, match="a TorchScript program"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compress_type": zipfile.ZIP_DEFLATED}, "compressed; save it again with torch.save"),
        ({"byteorder": b"big"}, "big-endian machine"),
    ],
)
def test_archives_that_cannot_be_read_by_offset_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    source = saved(tmp_path / "x.pt", {"w": torch.ones(5)})
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "y.pt", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("byteorder"):
                data = change.get("byteorder", data)
            new.writestr(info.filename, data, change.get("compress_type"))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "y.pt")


def test_quantized_tensors_are_carried_and_sparse_ones_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to remove quantized tensors; files with them remain
        quantized = torch.quantize_per_tensor(torch.tensor([0.1, 0.2]), 0.1, 0, torch.qint8)
        saved(tmp_path / "x.pt", {"q": quantized, "w": torch.ones(3)})
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert checkpoint.infos["q"].kind == "buffer" and not checkpoint.infos["q"].floating
    assert checkpoint["q"].int_repr().tolist() == [1, 2] and checkpoint["w"].tolist() == [1, 1, 1]
    with pytest.raises(CheckpointError, match=r"'s' is torch.sparse_coo on cpu, a plain tensor is needed"):
        open_checkpoint(saved(tmp_path / "x.pt", {"s": torch.eye(2).to_sparse()}))
    with pytest.raises(CheckpointError, match=r"'m' .* on meta|'m' of shape .* needs 12 bytes"):
        open_checkpoint(saved(tmp_path / "x.pt", {"m": torch.ones(3, device="meta")}))


def test_an_expanded_tensor_reads_up_to_a_bound(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"e": torch.ones(1).expand(1000)})
    assert open_checkpoint(path)["e"].tolist() == [1] * 1000
    with pytest.raises(CheckpointError, match=r"'e' .* claims far more entries than it stores"):
        open_checkpoint(saved(tmp_path / "x.pt", {"e": torch.ones(1).expand(1 << 40)}))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file_is_named(tmp_path: Path, legacy: bool) -> None:
    path = saved(tmp_path / "x.pt", {"w": torch.ones(1000)}, legacy)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"x\.pt: corrupt, or not a file of torch\.save"):
        open_checkpoint(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", [{"a": 1}, {"a": Attack()}, 7])
def test_a_plain_pickle_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(
        CheckpointError, match=r"x\.pkl: refused: a plain pickle, .* never runs code .*save_file"
    ):
        open_checkpoint(tmp_path / "x.pkl")
    assert not (tmp_path / "espalier_was_attacked").exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("value", "note"),
    [
        ({"ema": {"w": 2.0}, "net": {"w": 1.0}}, "read 'net' of x.pt; left out: 'ema'"),
        ({"net": {"w": 1.0}, "ema": {"w": 2.0}}, "read 'net' of x.pt; left out: 'ema'"),
        ({"a": {"b": {"w": 1.0}}, "c": {"w": 2.0}}, "read 'a.b' of x.pt; left out: 'c'"),
        (
            {"generator": {"w": 1.0}, "critic": {"w": 2.0}, "ema": {"w": 3.0}},
            "read 'generator' of x.pt; left out: 'ema', 'critic'",
        ),
        ({"net": {"w": 1.0}, "loss": 3.0, "optimizer": {"state": {0: {"m": 3.0}}}}, None),
    ],
)
def test_a_second_state_dict_is_named(
    tmp_path: Path, value: dict[str, Any], note: str | None, legacy: bool
) -> None:
    def filled(item: Any) -> Any:
        return {k: filled(v) for k, v in item.items()} if isinstance(item, dict) else torch.tensor([item])

    checkpoint = open_checkpoint(saved(tmp_path / "x.pt", filled(value), legacy))
    assert checkpoint["w"].item() == 1
    assert checkpoint.notes == (() if note is None else (note,))


def test_a_storage_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"w": torch.ones(77)}, legacy=True)
    data = path.read_bytes()
    at = data.index(b"cpu") + 3
    at = data.index(b"K\x4d", at)
    path.write_bytes(data[:at] + b"J\xff\xff\xff\x7f" + data[at + 2 :])
    with pytest.raises(CheckpointError, match="claims 2147483647 entries, the file has"):
        open_checkpoint(path)


@pytest.mark.data
@pytest.mark.parametrize(("name", "count"), [("resnet20-12fca82f.th", 97), ("resnet56-4bfd9763.th", 277)])
def test_public_checkpoints_read(data_folder: Path, name: str, count: int) -> None:
    path = data_folder.parent / "checkpoints" / name
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the data")
    checkpoint = open_checkpoint(path)
    assert len(checkpoint) == count and checkpoint.infos["conv1.weight"].shape == (16, 3, 3, 3)
    loaded = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    assert all(checkpoint[name.removeprefix("module.")].equal(tensor) for name, tensor in loaded.items())
