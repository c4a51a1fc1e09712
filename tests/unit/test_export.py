import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier import EspalierError, prune
from espalier._errors import CheckpointError
from espalier.checkpoint import load_sparse, open_checkpoint, rewrite, save_checkpoint
from espalier.cli import inputs, main
from espalier.export import (
    Difference,
    Example,
    Exported,
    Indices,
    hf_example,
    image_example,
    to_onnx,
    to_safetensors,
    to_sparse,
    to_torch,
)
from espalier.export.examples import as_example
from espalier.export.initializers import index_dtype, name_transposes, sparsify
from espalier.export.onnx_file import _check_packages
from espalier.export.parity import Session, difference, flattened
from espalier.models import DigitsCNN
from tests.conftest import saved

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Wide(nn.Module):
    """Two matrices, one of which has more entries than int16 can count."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(300, 200), nn.Linear(200, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())  # type: ignore[no-any-return]


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)  # type: ignore[no-any-return]


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


class PairsOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1, 4) * 2


def wide(zeros: float) -> Wide:
    model = Wide()
    if zeros:
        prune(model, zeros)
    return model


def run_file(path: Path, **feeds: Tensor) -> Any:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Exported]:
    torch.manual_seed(0)
    model = DigitsCNN()
    model.train()
    prune(model, 0.9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path_factory.mktemp("onnx") / "digits.onnx"
    exported = to_onnx(model, torch.rand(1, 1, 8, 8), path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    return model.eval(), exported


def test_the_file_is_smaller_and_right(pruned: tuple[nn.Module, Exported]) -> None:
    model, exported = pruned
    assert exported.bytes == exported.path.stat().st_size < 0.4 * exported.dense_bytes
    assert exported.difference.within and exported.difference.rows == (2, 1, 5)
    assert exported.inputs == {"x": ("batch", 1, 8, 8)} and exported.outputs == {"output": ("batch", 10)}
    x = torch.randn(7, 1, 8, 8)
    torch.testing.assert_close(torch.from_numpy(run_file(exported.path, x=x)[0]), model(x).detach())
    assert exported.zeros / exported.entries == pytest.approx(0.9, abs=0.02)
    assert not list(exported.path.parent.glob(".*"))


def test_sparse_initializers_are_in_the_file(pruned: tuple[nn.Module, Exported]) -> None:
    _, exported = pruned
    graph = onnx.load(exported.path).graph
    onnx.checker.check_model(str(exported.path))
    names = {item.values.name for item in graph.sparse_initializer}
    assert names == {tensor.name for tensor in exported.tensors if tensor.sparse}
    dense = {item.name for item in graph.initializer}
    assert {tensor.name for tensor in exported.tensors if not tensor.sparse} <= dense
    assert not dense & names
    text = exported.path.read_bytes()
    assert b"site-packages" not in text and str(Path(__file__).parents[2]).encode() not in text
    kept = next(note for note in exported.notes if "stay dense" in note)
    assert (
        "1 with zeros stay dense, because sparse is smaller only from 67 % zeros on: features.0.weight"
        in kept
    )
    assert any("onnxruntime makes sparse tensors dense" in note for note in exported.notes)


def test_what_is_sparse_is_what_is_smaller() -> None:
    for size in (np.float32, np.float16, np.float64):
        cases: list[tuple[float, Indices]] = [
            (0.0, "int64"),
            (0.5, "small"),
            (0.6, "int64"),
            (0.9, "int64"),
            (1.0, "small"),
        ]
        for zeros, dtype in cases:
            array = np.ones((200, 300), size)
            array.reshape(-1)[: round(zeros * array.size)] = -0.0
            tensor = onnx.numpy_helper.from_array(array, "w")
            model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
            before = model.ByteSize()
            (found,) = sparsify(model, dtype)
            assert (found.zeros, found.entries) == (round(zeros * 60_000), 60_000)
            pays = (12 if size is np.float32 else 16 if size is np.float64 else 10) if dtype == "int64" else 0
            pays = pays or array.itemsize + 4
            assert found.pays_from == pytest.approx(1 - array.itemsize / pays)
            assert found.sparse == (zeros > found.pays_from + 1e-3)
            assert model.ByteSize() <= before and len(model.graph.initializer) == (not found.sparse)
            assert found.bytes <= found.dense_bytes


def test_small_indices_are_the_smallest_that_onnxruntime_reads(tmp_path: Path) -> None:
    assert [index_dtype(n, "small") for n in (1 << 15, (1 << 15) + 1, (1 << 31) + 1)] == [
        np.int16,
        np.int32,
        np.int64,
    ]
    assert index_dtype(10, "int64") == np.int64
    model = wide(0.9).eval()
    exported = to_onnx(model, torch.rand(2, 300), tmp_path / "x.onnx", indices="small")
    kinds = {i.values.name: i.indices.data_type for i in onnx.load(exported.path).graph.sparse_initializer}
    assert set(kinds.values()) <= {onnx.TensorProto.INT16, onnx.TensorProto.INT32} and len(kinds) >= 1
    assert exported.bytes < 0.25 * exported.dense_bytes
    assert any("the ONNX standard knows int64 alone" in note for note in exported.notes)
    x = torch.randn(3, 300)
    torch.testing.assert_close(torch.from_numpy(run_file(exported.path, x=x)[0]), model(x).detach())


def test_a_dense_network_is_exported_and_told_that_nothing_is_gained(tmp_path: Path) -> None:
    exported = to_onnx(nn.Linear(20, 10), torch.rand(2, 20), tmp_path / "x.onnx", fixed=True)
    assert exported.bytes == exported.dense_bytes and exported.inputs == {"input": (2, 20)}
    assert exported.notes == ("no weight is zero: nothing is gained over a dense file; prune it first",)
    assert exported.difference.rows == (2,)


def test_refusals_say_what_to_do_and_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_text("mine")
    linear = nn.Linear(20, 10)
    cases: list[tuple[nn.Module, Any, dict[str, Any], str]] = [
        (Unknown(), torch.rand(2, 3), {}, r"the operator prims\.bessel_j0 has no form there; replace it"),
        (
            Branches(),
            torch.rand(2, 3),
            {},
            r"Branches cannot be exported .*in forward, test_export\.py line \d+: `if x",
        ),
        (
            linear,
            torch.rand(2, 19),
            {},
            r"Linear does not run on an example of shape \(2, 19\): RuntimeError: .*give",
        ),
        (
            linear,
            torch.rand(2, 20),
            {"tolerance": 0.0},
            "not written: onnxruntime differs .* than the tolerance 0;",
        ),
        (linear, torch.rand(2, 20), {"opset": 99}, r"opset 99 was asked for and torch .* wrote \d+ instead"),
        (linear, [1], {}, "the example must be a tensor, a tuple or a dict of tensors, got list"),
        (linear, torch.tensor(1.0), {}, "needs a batch as its first axis"),
        (
            nn.Linear(20, 10).bfloat16(),
            torch.rand(2, 20).bfloat16(),
            {},
            r"onnxruntime .* cannot run the exported graph: .*Gemm",
        ),
    ]
    for model, example, options, message in cases:
        with pytest.raises(EspalierError, match=message) as caught:
            to_onnx(model, example, path, **options)
        assert "\n" not in str(caught.value)
        assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_a_batch_that_cannot_be_open_is_fixed_and_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exported = to_onnx(PairsOnly(), torch.rand(2, 3, 4), tmp_path / "x.onnx")
    assert exported.inputs == {"x": (2, 3, 4)}
    assert (
        "the batch is fixed at 2, because it cannot be left open: PairsOnly does not run"
        in exported.notes[-1]
    )
    assert capfd.readouterr() == ("", "")


def test_differences() -> None:
    one = difference([(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))], 0.6, (2,))
    assert one == Difference(2.0, 0.5, 0.6, (2,)) and one.within
    nan = difference(
        [(torch.tensor([float("nan")]), torch.ones(1)), (torch.ones(1), torch.ones(1))], 9.0, (2,)
    )
    assert not nan.within
    assert (
        difference([(torch.ones(2), torch.zeros(2)), (torch.empty(0), torch.empty(0))], 9.0, (2,)).relative
        == 1.0
    )
    with pytest.raises(EspalierError, match=r"gives \(2,\) where the model gives \(3,\)"):
        difference([(torch.ones(2), torch.ones(3))], 1.0, (2,))
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    assert [t.numel() for t in flattened({"a": a, "b": (b, [c], None)})] == [1, 2, 3]


def test_examples() -> None:
    one = as_example(torch.arange(3))
    assert one.rows == 3 and one.with_rows(5).tensors[0].tolist() == [0, 1, 2, 0, 1]
    named = as_example({"a": torch.ones(2, 1), "b": torch.ones(2, 3)})
    assert named.arguments == ((), dict(zip("ab", named.tensors, strict=True)))
    assert as_example(named) is named and named.shapes == "(2, 1), (2, 3)"
    assert torch.equal(image_example((3, 4)).tensors[0], image_example((3, 4)).tensors[0])
    assert image_example((3, 4)).like((5, 6)).tensors[0].shape == (2, 5, 6)
    with pytest.raises(EspalierError, match=r"inputs of shape \(4,\) do not fit a, b: \(2, 1\), \(2, 3\)"):
        named.like((4,))
    fixed = Example((torch.ones(4, 2),), None, ({},))
    assert fixed.rows == 1 and fixed.with_rows(3).tensors[0].shape == (4, 2)
    assert as_example((torch.ones(1), torch.ones(1))).labels(Wide()) == ("x", "input_0")


def test_transposed_parameters_get_their_names_back() -> None:
    weight, other = torch.arange(6.0).view(2, 3), torch.ones(3, 2)

    def graph(*nodes: Any) -> Any:
        initializers = [
            onnx.numpy_helper.from_array(weight.t().contiguous().numpy(), "val_1"),
            onnx.numpy_helper.from_array(other.numpy(), "val_2"),
        ]
        return onnx.helper.make_model(onnx.helper.make_graph(list(nodes), "g", [], [], initializers))

    product = onnx.helper.make_node("MatMul", ["x", "val_1"], ["y"])
    proto = graph(product)
    name_transposes(proto, {"a.weight": weight, "b.bias": torch.ones(2)})
    assert [tensor.name for tensor in proto.graph.initializer] == ["a.weight.T", "val_2"]
    assert list(proto.graph.node[0].input) == ["x", "a.weight.T"]
    inner = onnx.helper.make_graph([product], "inner", [], [])
    proto = graph(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    name_transposes(proto, {"a.weight": weight})
    assert [tensor.name for tensor in proto.graph.initializer] == ["val_1", "val_2"]


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EspalierError, match=r"needs onnxscript: pip install 'espalier\[export\]'"):
        _check_packages()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EspalierError, match=r"needs onnxruntime: pip install 'espalier\[export\]'"):
        Session(tmp_path / "x.onnx")


# Checkpoint files.


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Tensor]:
    weight = torch.randn(100, 80)
    tensors = {
        "w": weight.masked_fill(weight.abs() < 1.6, 0),
        "h": torch.randn(30, 40).bfloat16(),
        "n": torch.tensor(3),
    }
    tensors["tied"] = tensors["w"]
    rewrite(open_checkpoint(tensors), tmp_path / "sparse.safetensors", lambda _, tensor: tensor, sparse=True)
    save_checkpoint(tmp_path / "dense.safetensors", tensors)
    return tensors


def test_sparse_to_torch_and_back(tmp_path: Path, state: dict[str, Tensor]) -> None:
    small = open_checkpoint(tmp_path / "sparse.safetensors")
    converted = to_torch(small, tmp_path / "x.pt")
    read = torch.load(tmp_path / "x.pt", weights_only=True)
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)
    assert read["w"].data_ptr() == read["tied"].data_ptr()
    assert converted.bytes == (tmp_path / "x.pt").stat().st_size > converted.source_bytes
    assert converted.notes == () and converted.dense_bytes == 34_408
    back = to_sparse(open_checkpoint(tmp_path / "x.pt"), tmp_path / "back.safetensors")
    assert back.bytes < 0.5 * back.source_bytes and back.notes == ()
    assert all(torch.equal(load_sparse(tmp_path / "back.safetensors")[name], state[name]) for name in state)


def test_sparse_to_dense_and_dense_to_dense(tmp_path: Path, state: dict[str, Tensor]) -> None:
    assert (
        to_safetensors(open_checkpoint(tmp_path / "sparse.safetensors"), tmp_path / "a.safetensors").notes
        == ()
    )
    converted = to_safetensors(open_checkpoint(tmp_path / "dense.safetensors"), tmp_path / "b.safetensors")
    assert "the source is dense already" in converted.notes[0]
    assert all(
        torch.equal(open_checkpoint(tmp_path / "a.safetensors").state_dict()[n], state[n]) for n in state
    )
    save_checkpoint(tmp_path / "full.safetensors", {"w": torch.ones(100, 100)})
    converted = to_sparse(open_checkpoint(tmp_path / "full.safetensors"), tmp_path / "c.safetensors")
    assert converted.notes == ("nothing is gained: no tensor has enough zeros; prune it first",)
    assert converted.to_dict()["path"] == str(tmp_path / "c.safetensors")


def test_negative_zeros_are_kept_and_told(tmp_path: Path) -> None:
    weight = torch.randn(64, 64)
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"w": weight * (weight.abs() > 2)})
    (note,) = to_sparse(open_checkpoint(path), tmp_path / "s.safetensors").notes
    count = int(((weight < 0) & (weight >= -2)).sum())
    assert note.startswith(f"{count:,} zeros are -0.0") and "add 0.0 to the tensors" in note
    save_checkpoint(path, {"w": weight * (weight.abs() > 2) + 0.0})
    assert to_sparse(open_checkpoint(path), tmp_path / "s.safetensors").notes == ()


def test_outputs_of_the_wrong_kind_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    source = open_checkpoint(tmp_path / "dense.safetensors")
    with pytest.raises(CheckpointError, match=r"a torch file needs a name that ends in \.pt"):
        to_torch(source, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"no torch file; name it x\.safetensors, or use --to torch"):
        to_safetensors(source, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="no torch file"):
        to_sparse(source, tmp_path / "x.bin")
    to_torch(source, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="is the file that is read"):
        to_torch(open_checkpoint(tmp_path / "x.pt"), tmp_path / "x.pt")


# The command line.


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["espalier", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_the_command_writes_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = DigitsCNN()
    prune(model, 0.9)
    small, out = tmp_path / "small.safetensors", tmp_path / "x.onnx"
    rewrite(open_checkpoint(model), small, lambda _, tensor: tensor, sparse=True)
    assert call(monkeypatch, small, "--to", "onnx", "--model", "digits_cnn", "-o", out) == 0
    text = capsys.readouterr().out
    assert "the same network with dense weights: 105 kB" in text and "batches of 2 and 1 and 5" in text
    assert "x (batch, 1, 8, 8)" in text and "sparse" in text
    options = ("--model", "digits_cnn", "-o", out, "--batch", "1", "--json")
    assert call(monkeypatch, small, "--to", "onnx", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inputs"] == {"x": [1, 1, 8, 8]} and found["difference"]["within"]
    assert found["bytes"] < 0.4 * found["dense_bytes"] and found["source_bytes"] == small.stat().st_size


def test_the_command_converts_and_refuses(
    tmp_path: Path,
    state: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = tmp_path / "sparse.safetensors"
    assert call(monkeypatch, small, "--to", "torch", "-o", tmp_path / "x.pt") == 0
    assert "the tensors take 34.4 kB when dense" in capsys.readouterr().out
    assert call(monkeypatch, small, "--to", "safetensors", "-o", tmp_path / "x.safetensors", "--json") == 0
    assert json.loads(capsys.readouterr().out)["form"] == "safetensors"
    for arguments, message in (
        (("--to", "onnx", "-o", tmp_path / "x.onnx"), "--to onnx needs --model: weights alone"),
        (("--to", "onnx", "--model", "lenet5", "-o", small), "is the file that is read"),
        (("--to", "onnx", "--model", "lenet5", "-o", tmp_path / "x.onnx"), "does not fit LeNet5"),
    ):
        assert call(monkeypatch, small, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_words_of_inputs(tmp_path: Path) -> None:
    assert inputs.shape("3x32x32") == inputs.shape("3,32,32") == (3, 32, 32)
    for word in ("", "3x", "axb", "0x3", "-1"):
        with pytest.raises(EspalierError, match="--input-shape must be the sizes of one input"):
            inputs.shape(word)
    known = {
        "resnet20": 32,
        "vgg16": 32,
        "wrn28x10": 32,
        "lenet5": 28,
        "digits_cnn": 8,
        "torchvision:resnet18": 224,
    }
    assert all((inputs.known_shape(word) or (0,))[-1] == size for word, size in known.items())
    with pytest.raises(EspalierError, match="the shape of its inputs is not known: give --input-shape"):
        inputs.example("mine:net", nn.Linear(2, 2), None)
    save_checkpoint(tmp_path / "x.safetensors", {"a": torch.ones(7, 3), "b": torch.ones(7)})
    assert inputs.classes(open_checkpoint(tmp_path / "x.safetensors")) == 7


# Networks of transformers.


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
        max_position_embeddings=16,
    )
    model = transformers.BertModel(config)
    prune(model, 0.9)
    return saved(model, tmp_path_factory.mktemp("bert"))


def test_an_encoder_is_exported_with_open_batch_and_length(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from espalier.models import hf_model

    out = tmp_path / "x.onnx"
    assert call(monkeypatch, bert, "--to", "onnx", "-o", out, "--input-shape", "12", "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["inputs"] == {name: ["batch", "sequence"] for name in ("input_ids", "attention_mask")}
    assert list(found["outputs"]) == ["last_hidden_state", "pooler_output"]
    assert found["bytes"] < 0.6 * found["dense_bytes"]
    sparse = {tensor["name"]: tensor["shape"] for tensor in found["tensors"] if tensor["sparse"]}
    assert sparse["encoder.layer.0.intermediate.dense.weight.T"] == [32, 64]  # and not `val_92`
    assert not any(name.startswith("val_") for name in sparse)
    model = hf_model(bert).eval()
    ids = torch.randint(0, 50, (3, 9))
    ours = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.detach()
    theirs = run_file(out, input_ids=ids, attention_mask=torch.ones_like(ids))[0]
    torch.testing.assert_close(torch.from_numpy(theirs), ours, atol=1e-5, rtol=1e-4)


def test_examples_of_transformers(bert: Path) -> None:
    from espalier.models import hf_model

    model = hf_model(bert)
    drawn = hf_example(model, bert)
    assert drawn.names == ("input_ids", "attention_mask") and drawn.tensors[0].shape == (2, 16)
    assert drawn.tensors[1].sum() == 28 and int(drawn.tensors[0].max()) < 50
    assert hf_example(model, bert, 8).tensors[0].shape == (2, 8)
    (bert / "tokenizer.json").write_text("{}")  # a tokenizer that cannot be read is no reason to stop
    assert hf_example(model, bert).tensors[0].shape == (2, 16)
    (bert / "tokenizer.json").unlink()
    with pytest.raises(EspalierError, match="Linear takes neither input_ids nor pixel_values"):
        hf_example(nn.Linear(2, 2), bert)


def test_images_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
    )
    example = hf_example(transformers.ViTModel(config), "nowhere")
    assert example.names == ("pixel_values",) and example.tensors[0].shape == (2, 3, 8, 8)
    assert inputs.example("hf:nowhere", transformers.ViTModel(config), "3x4x4").tensors[0].shape == (
        2,
        3,
        4,
        4,
    )
