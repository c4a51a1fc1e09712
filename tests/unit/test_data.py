import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from espalier import EspalierError
from espalier.data import (
    IMAGENET,
    Augmentation,
    Dataset,
    Normalization,
    Options,
    TensorSplit,
    data_folder,
    digits,
    hub,
    image_folder,
    parquet,
    torchvision_data,
)
from espalier.models import torchvision_model


@pytest.fixture(scope="module")
def small() -> Dataset:
    return digits(Options(limit=50))


def ramp(n: int = 10, augmentation: Augmentation | None = None) -> TensorSplit:
    """Image i is constant i."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 4, 4).contiguous()
    return TensorSplit("train", images, torch.arange(n), torch.arange(n), 1.0, augmentation=augmentation)


def order(split: TensorSplit, **arguments) -> list[int]:
    return [int(v) for _, y in split.batches(**arguments) for v in y]


def test_digits_splits_are_disjoint_and_fixed():
    data = digits()
    assert [len(s) for s in (data.train, data.validation, data.test)] == [1293, 144, 360]
    assert isinstance(data.train, TensorSplit) and isinstance(data.validation, TensorSplit)
    assert not set(data.train.rows.tolist()) & set(data.validation.rows.tolist())
    assert digits().validation.digest == data.validation.digest != data.train.digest
    assert (data.input_shape, data.classes) == ((1, 8, 8), tuple("0123456789"))
    x, y = next(data.test.batches(7))
    assert (x.dtype, x.shape, y.dtype) == (torch.float32, (7, 1, 8, 8), torch.int64)
    assert x.min() >= 0 and x.max() == 1


def test_limit_takes_from_every_split(small: Dataset):
    assert [len(s) for s in (small.train, small.validation, small.test)] == [50, 50, 50]
    assert "at most 50" in small.provenance
    assert torch.equal(small.train.labels, digits().train.labels[:50])


def test_no_seed_keeps_the_order_and_a_seed_shuffles_the_same_each_time():
    split = ramp()
    assert order(split, batch_size=3) == list(range(10))
    shuffled = order(split, batch_size=3, seed=1)
    assert sorted(shuffled) == list(range(10)) != shuffled
    assert order(split, batch_size=10, seed=1) == shuffled  # whatever the batch size
    assert order(split, batch_size=3, seed=1, epoch=1) != shuffled
    assert order(split, batch_size=3, seed=2) != shuffled


def test_inputs_and_labels_stay_together():
    for x, y in ramp().batches(4, seed=3):
        assert x[:, 0, 0, 0].tolist() == y.tolist()
    assert [len(x) for x in ramp().inputs(4)] == [4, 4, 2]


def test_shards_share_each_batch_and_take_equally_many_steps():
    split = ramp()
    whole = order(split, batch_size=4, seed=5)
    shards = [[y.tolist() for _, y in split.batches(4, seed=5, shard=(i, 2))] for i in range(2)]
    assert [len(s) for s in shards] == [3, 3] == [split.steps(4, 2)] * 2
    together = [v for a, b in zip(*shards) for pair in zip(a, b) for v in pair]
    assert together == whole
    odd = ramp(9)
    assert [[len(x) for x, _ in odd.batches(4, seed=5, shard=(i, 2))] for i in range(2)] == [[2, 2]] * 2
    assert (odd.steps(4, 2), odd.steps(4)) == (2, 3)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    order(ramp(augmentation=Augmentation(1, True)), batch_size=4, seed=0, augment=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_is_a_crop_of_the_padded_image_or_its_mirror():
    images = torch.arange(1, 13, dtype=torch.uint8).view(1, 1, 3, 4).repeat(200, 1, 1, 1)
    split = TensorSplit(
        "train", images, torch.zeros(200, dtype=torch.int64), torch.arange(200), 1.0,
        augmentation=Augmentation(1, True),
    )  # fmt: skip
    padded = torch.nn.functional.pad(images[0], (1, 1, 1, 1)).float()
    crops = [padded[:, i : i + 3, j : j + 4] for i in range(3) for j in range(3)]
    allowed = {tuple(c.flatten().tolist()) for crop in crops for c in (crop, crop.flip(2))}
    batches = split.batches(64, seed=0, augment=True)
    seen = {tuple(x.flatten().tolist()) for batch, _ in batches for x in batch}
    assert seen == allowed


def test_augmentation_does_not_depend_on_the_batch_size():
    split = digits(Options(limit=40)).train
    one = torch.cat([x for x, _ in split.batches(40, seed=1, augment=True)])
    other = torch.cat([x for x, _ in split.batches(7, seed=1, augment=True)])
    assert torch.equal(one, other)
    later = torch.cat([x for x, _ in split.batches(7, seed=1, epoch=1, augment=True)])
    assert not torch.equal(one, later)


def test_normalization():
    x = torch.tensor([0.5, 1.0]).view(1, 2, 1, 1)
    assert Normalization((0.5, 0.0), (0.5, 0.25))(x.clone()).flatten().tolist() == [0.0, 4.0]
    assert Normalization().identity and not IMAGENET.identity
    with pytest.raises(EspalierError, match="3 channels, the images have 2"):
        IMAGENET(x)
    with pytest.raises(EspalierError, match="as many means"):
        Normalization((0.0,), (0.0,))


def test_requests_that_cannot_be():
    with pytest.raises(EspalierError, match=r"validation fraction must be in \[0, 1\), got 1"):
        Options(validation=1)
    with pytest.raises(EspalierError, match="limit must be at least 1"):
        Options(limit=0)
    with pytest.raises(EspalierError, match="positive multiple of 2 processes, got 3"):
        ramp().batches(3, shard=(0, 2))
    with pytest.raises(EspalierError, match="give `seed`"):
        ramp().batches(3, augment=True)
    with pytest.raises(EspalierError, match=r"'MNITS' is not one of .* Did you mean 'MNIST'"):
        torchvision_data("MNITS")
    with pytest.raises(EspalierError, match="needs the package `datasets`"):
        hub("somebody/cifar10")


def test_missing_data_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(EspalierError, match=r"MNIST is not in .*download=True.*ESPALIER_DATA"):
        torchvision_data("MNIST", tmp_path)
    with pytest.raises(EspalierError, match=r"has no train\*.parquet.*ESPALIER_DATA"):
        parquet(tmp_path)
    with pytest.raises(EspalierError, match="is no image folder"):
        image_folder(tmp_path)
    with pytest.raises(EspalierError, match="does not exist"):
        data_folder(tmp_path / "absent")
    monkeypatch.delenv("ESPALIER_DATA", raising=False)
    with pytest.raises(EspalierError, match="set ESPALIER_DATA or give --data"):
        torchvision_data("MNIST")


def test_hub_data_set_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys
    from types import ModuleType, SimpleNamespace

    class Loaded:
        def __init__(self, images: int) -> None:
            self.images = images

        def to_parquet(self, file: Path) -> None:
            write_parquet(file, [encoded(i) for i in range(self.images)], [0] * self.images, column="image")

    def load_dataset(name: str) -> dict[str, Loaded]:
        if name != "somebody/pictures":
            raise ConnectionError("no such data set")
        return {"train": Loaded(10), "test": Loaded(3)}

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    fake.config = SimpleNamespace(HF_DATASETS_CACHE=tmp_path)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    data = hub("somebody/pictures")
    assert (data.name, len(data.train), len(data.test)) == ("somebody--pictures", 9, 3)
    with pytest.raises(EspalierError, match="cannot be loaded: no such data set"):
        hub("somebody/else")


def encoded(value: int, size: tuple[int, int] = (4, 4), mode: str = "RGB") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    color = value if mode == "L" else (value, 0, 255)
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(file: Path, images: list[bytes], labels: list[int], column: str = "img") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": b, "path": None} for b in images]
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({column: rows, "label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, file)


def test_parquet_folder(tmp_path: Path):
    (tmp_path / "data").mkdir()
    folder = tmp_path / "data"
    write_parquet(folder / "train-0.parquet", [encoded(i) for i in range(20)], [i % 2 for i in range(20)])
    write_parquet(folder / "test-0.parquet", [encoded(100 + i) for i in range(4)], [0, 1, 0, 1])
    plain = Options(Normalization())
    data = parquet(tmp_path, plain)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [18, 2, 4]
    assert (data.name, data.classes, data.input_shape) == (tmp_path.name, ("cat", "dog"), (3, 4, 4))
    values: dict[int, int] = {}
    for split in (data.train, data.validation):
        for x, y in split.batches(5):
            assert x[:, 2].eq(1).all() and x[:, 1].eq(0).all()
            values |= {round(float(v) * 255): int(label) for v, label in zip(x[:, 0, 0, 0], y)}
    assert values == {i: i % 2 for i in range(20)}
    limited = parquet(tmp_path, Options(Normalization(), limit=3))
    assert torch.equal(limited.train.labels, data.train.labels[:3])
    assert torch.equal(next(limited.train.batches(3))[0], next(data.train.batches(3))[0])
    assert len(limited.test) == 3
    normalized = next(parquet(tmp_path).test.batches(1))[0]
    assert normalized[0, :, 0, 0].tolist() == pytest.approx(
        [(100 / 255 - 0.485) / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225], rel=1e-5
    )


def test_parquet_refusals(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", [encoded(1), encoded(2, (5, 4))], [0, 1])
    write_parquet(tmp_path / "test.parquet", [encoded(1)], [0])
    with pytest.raises(EspalierError, match=r"different sizes .*5x4"):
        parquet(tmp_path)
    write_parquet(tmp_path / "train.parquet", [encoded(1), b"no image"], [0, 1])
    with pytest.raises(EspalierError, match="cannot be decoded"):
        parquet(tmp_path)
    write_parquet(tmp_path / "train.parquet", [encoded(1)] * 2, [0, 1], column="picture")
    with pytest.raises(EspalierError, match="column img or image; found picture, label"):
        parquet(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(EspalierError, match="cannot be read as parquet"):
        parquet(tmp_path)


def test_gray_parquet_has_one_channel_and_mixed_has_three(tmp_path: Path):
    write_parquet(tmp_path / "test.parquet", [encoded(9, mode="L")], [0])
    write_parquet(tmp_path / "train.parquet", [encoded(7, mode="L")] * 10, [0] * 10)
    assert parquet(tmp_path).input_shape == (1, 4, 4)
    write_parquet(tmp_path / "train.parquet", [encoded(7, mode="L")] * 9 + [encoded(1)], [0] * 10)
    assert parquet(tmp_path).input_shape == (3, 4, 4)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    from PIL import Image

    for split, count in (("train", 5), ("val", 2)):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_image_folder(pictures: Path):
    data = image_folder(pictures, Options(validation=0.2), size=16, workers=0)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [8, 2, 4]
    assert (data.classes, data.input_shape) == (("ant", "bee"), (3, 16, 16))
    assert [y.tolist() for _, y in data.test.batches(3)] == [[0, 0, 1], [1]]
    first, again, plain = (
        torch.cat([x for x, _ in data.train.batches(size, seed=1, epoch=2, augment=augment)])
        for size, augment in ((3, True), (8, True), (8, False))
    )
    assert first.shape == (8, 3, 16, 16)
    assert torch.equal(first, again) and not torch.equal(first, plain)
    assert data.train.take(2).labels.tolist() == data.train.labels[:2].tolist()
    assert data.train.digest != data.train.take(2).digest


def test_image_folder_decodes_in_workers_the_same(pictures: Path):
    splits = [image_folder(pictures, size=16, workers=n).train for n in (0, 1)]
    one, other = ([x for x, _ in s.batches(4, seed=0, augment=True)] for s in splits)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_image_folder_refusals(pictures: Path):
    (pictures / "val" / "ant" / "0.png").write_bytes(b"broken")
    data = image_folder(pictures, size=16, workers=0)
    with pytest.raises(EspalierError, match="cannot be decoded"):
        list(data.test.batches(4))
    (pictures / "val" / "bee").rename(pictures / "val" / "cow")
    with pytest.raises(EspalierError, match="different classes"):
        image_folder(pictures)


def test_augmentation_of_an_image_folder_is_a_random_part_and_its_mirror(tmp_path: Path):
    """An image whose red says the column: a part of it spans fewer columns, mirrored half of the time."""
    from PIL import Image

    pixels = np.zeros((40, 200, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(200)
    for split in ("train", "val"):
        (tmp_path / split / "one").mkdir(parents=True)
        for i in range(30):
            Image.fromarray(pixels).save(tmp_path / split / "one" / f"{i:02}.png")
    data = image_folder(tmp_path, Options(Normalization(), validation=0.0), size=16, workers=0)
    x, _ = next(data.train.batches(30, seed=0, augment=True))
    rising = x[:, 0, 8, -1] > x[:, 0, 8, 0]
    assert 5 < int(rising.sum()) < 25
    spans = (x[:, 0, 8, -1] - x[:, 0, 8, 0]).abs() * 255
    assert spans.std() > 5 and spans.max() < 110  # at most 3/4 to 4/3 of the whole area's root
    center, _ = next(data.test.batches(1))
    assert center[0, 0, 8].mul(255).mean().item() == pytest.approx(99.5, abs=2)


def test_image_folder_decides_the_classes_of_a_torchvision_network(pictures: Path):
    data = image_folder(pictures, size=32, workers=0)
    with torch.device("meta"):
        model = torchvision_model("resnet50", len(data.classes))
        assert model(torch.empty(3, *data.input_shape)).shape == (3, 2)


@pytest.mark.parametrize(("name", "classes"), [("CIFAR10", 10), ("CIFAR100", 100)])
def test_cifar_files(name: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The pickles of the data set's home page with 4 images a file; their checksums are not asked for."""
    import torchvision.datasets as sets

    kind = getattr(sets, name)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    for file, _ in [*kind.train_list, *kind.test_list]:
        pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        labels = {"labels" if name == "CIFAR10" else "fine_labels": [0, 1, 2, classes - 1]}
        (folder / file).write_bytes(pickle.dumps({"data": pixels, **labels}))
    meta = {kind.meta["key"]: [f"class {i}" for i in range(classes)]}
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps(meta))
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": None})
    data = torchvision_data(name, tmp_path, Options(Normalization(), validation=0.0))
    assert data.classes == tuple(f"class {i}" for i in range(classes))
    assert data.input_shape == (3, 32, 32) and len(data.test) == 4
    x, y = next(data.test.batches(4))
    assert y.tolist() == [0, 1, 2, classes - 1]
    assert torch.equal(x.mul(255).round().flatten(1), torch.from_numpy(pixels).float())
    augmented, _ = next(data.train.batches(4, seed=0, augment=True))
    assert augmented.shape == (4, 3, 32, 32)


@pytest.mark.data
def test_public_data_sets(data_folder: Path):
    mnist = torchvision_data("MNIST", data_folder, Options(limit=300))
    x, _ = next(mnist.train.batches(300))
    assert x.shape == (300, 1, 28, 28) and x.mean().item() == pytest.approx(0.1307, abs=0.01)
    cifar = parquet("cifar10_jpeg", Options(limit=50), data=data_folder)
    assert cifar.classes[:2] == ("airplane", "automobile") and cifar.input_shape == (3, 32, 32)
