"""The command line as a person or a program meets it: output, exit codes, one-line errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from espalier.checkpoint import open_checkpoint, save_checkpoint
from tests.conftest import Run

COMMANDS = (
    *("inspect", "prune", "unpack", "finetune", "train", "compare", "evaluate", "export", "bench", "demo"),
    *(
        f"landscape {name}"
        for name in ("spectrum", "project", "path", "plane", "functions", "norms", "topology")
    ),
)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A small checkpoint with two layers, a bias and a counter."""
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "dense.safetensors"
    tensors = {
        "one.weight": torch.randn(40, 20, generator=generator),
        "one.bias": torch.randn(40, generator=generator),
        "two.weight": torch.randn(10, 40, generator=generator),
        "steps": torch.tensor(7),
    }
    save_checkpoint(path, tensors)
    return path


def test_help_is_instant_because_it_imports_no_torch() -> None:
    program = (
        "import sys; sys.argv = ['espalier', '--help']\n"
        "from espalier.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'imported at --help'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command.split()[0] in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(run: Run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert f"  espalier {command}" in out
    assert "--json" in out


def test_version(run: Run) -> None:
    import espalier

    assert run("--version") == (0, f"espalier {espalier.__version__}\n", "")


def test_inspect_prints_amounts_curve_and_tensors(run: Run, dense: Path) -> None:
    code, out, err = run("inspect", "dense.safetensors")
    assert (code, err) == (0, "")
    for word in (
        "utopia",
        "safe",
        "cosine",
        "effective",
        "knee",
        "needs fine-tuning",
        "one.weight",
        "note:",
        "null",
    ):
        assert word in out
    assert "1.0 ┤" in out


def test_inspect_json_follows_the_documented_schema(run: Run, dense: Path) -> None:
    code, out, _ = run("inspect", "dense.safetensors", "--json", "--amount", "0.5")
    assert code == 0
    found = json.loads(out)
    assert found["selection"] == {
        "scope": "weights", "tensors": 2, "entries": 1200, "zeros": 0, "parameters": 1240, "left_out": {},
    }  # fmt: skip
    assert found["amounts"]["0.5"]["kept"] == 600
    utopia = found["amounts"]["utopia"]
    assert 0.6521 < utopia["sparsity"] < 1 and 0 < utopia["cosine"] < 1
    assert {"safe", "cosine", "effective", "knee"} < set(found["amounts"])
    assert len(found["curve"]["sparsity"]) == len(found["curve"]["cosine"]) >= 101
    assert [t["name"] for t in found["tensors"]] == ["one.weight", "two.weight"]
    documented = (Path(__file__).parents[1] / "docs" / "json.md").read_text()
    for key in (*found, *found["tensors"][0], *utopia):
        assert f"`{key}" in documented or f".{key}" in documented, f"docs/json.md does not name {key!r}"


def test_inspect_writes_a_self_contained_page(run: Run, dense: Path, tmp_path: Path) -> None:
    assert run("inspect", "dense.safetensors", "--html", "report.html")[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "one.weight" in page and "utopia" in page
    for outside in ("<script", "<link", 'src="http', "@import"):
        assert outside not in page


def test_streaming_agrees_with_exact_within_its_bound(run: Run, dense: Path) -> None:
    exact = json.loads(run("inspect", "dense.safetensors", "--json", "--exact")[1])
    streamed = json.loads(run("inspect", "dense.safetensors", "--json", "--streaming")[1])
    assert exact["exact"] and not streamed["exact"]
    at = {s: c for s, c in zip(exact["curve"]["sparsity"], exact["curve"]["cosine"])}
    for sparsity, cosine in zip(streamed["curve"]["sparsity"], streamed["curve"]["cosine"]):
        if sparsity in at:
            assert abs(cosine - at[sparsity]) <= streamed["curve"]["error"] + 1e-12


def test_prune_writes_exactly_what_was_asked(run: Run, dense: Path, tmp_path: Path) -> None:
    code, out, _ = run("prune", "dense.safetensors", "--amount", "90%", "-o", "pruned.safetensors", "--json")
    assert code == 0
    record = json.loads(out)
    assert (record["zeros"], record["entries"], record["asked"]) == (1080, 1200, 0.9)
    before, after = open_checkpoint(dense), open_checkpoint(tmp_path / "pruned.safetensors")
    assert sum(int((after[n] == 0).sum()) for n in ("one.weight", "two.weight")) == 1080
    assert torch.equal(after["one.bias"], before["one.bias"]) and torch.equal(after["steps"], before["steps"])
    assert json.loads(after.metadata["espalier.prune"])["zeros"] == 1080


def test_what_was_asked_is_recorded_as_it_was_asked(run: Run, dense: Path) -> None:
    record = json.loads(
        run("prune", "dense.safetensors", "--amount", "0.3333", "-o", "p.safetensors", "--json")[1]
    )
    assert (record["asked"], record["zeros"]) == (0.3333, 400)
    assert record["sparsity"] == 400 / 1200


def test_sparse_file_is_smaller_and_unpacks_to_the_same_bits(run: Run, dense: Path, tmp_path: Path) -> None:
    run("prune", "dense.safetensors", "--amount", "0.9", "-o", "pruned.safetensors")
    code, out, _ = run(
        "prune", "dense.safetensors", "--amount", "0.9", "--format", "sparse", "-o", "small.safetensors"
    )
    assert code == 0 and "% of the source" in out
    assert (tmp_path / "small.safetensors").stat().st_size < 0.5 * dense.stat().st_size
    assert run("unpack", "small.safetensors", "-o", "back.safetensors")[0] == 0
    one, other = (open_checkpoint(tmp_path / name) for name in ("pruned.safetensors", "back.safetensors"))
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_pruning_again_keeps_zeros_and_says_so(run: Run, dense: Path) -> None:
    run("prune", "dense.safetensors", "--amount", "0.9", "-o", "pruned.safetensors")
    code, out, _ = run("prune", "pruned.safetensors", "--amount", "0.5", "-o", "again.safetensors", "--json")
    record = json.loads(out)
    assert code == 0 and record["zeros"] == 1080
    assert "zero already" in record["notes"][0]


def test_random_is_a_control_with_the_same_count_and_less_cosine(run: Run, dense: Path) -> None:
    best = json.loads(
        run("prune", "dense.safetensors", "--amount", "0.5", "-o", "a.safetensors", "--json")[1]
    )
    random = json.loads(
        run("prune", "dense.safetensors", "--amount", "0.5", "--random", "-o", "b.safetensors", "--json")[1]
    )
    assert random["zeros"] == best["zeros"] == 600
    assert random["cosine"] < best["cosine"]


def test_an_amount_that_another_allocation_does_not_keep_is_said(run: Run, dense: Path) -> None:
    out = run(
        "prune", "dense.safetensors", "--amount", "cosine=0.9", "--random", "-o", "r.safetensors", "--json"
    )[1]
    record = json.loads(out)
    assert record["cosine"] < 0.85
    assert "chosen for global magnitude pruning" in record["notes"][-1]
    assert record["how"].startswith("cosine") and "Random" in record["how"]


def test_one_weight_can_be_inspected_as_html(run: Run, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "one.safetensors", {"one.weight": torch.ones(1, 1)})
    assert run("inspect", "one.safetensors", "--html", "one.html")[0] == 0
    assert (tmp_path / "one.html").read_text().count("<svg") == 2


def test_nm_pattern(run: Run, dense: Path, tmp_path: Path) -> None:
    assert (
        run("prune", "dense.safetensors", "--nm", "2:4", "-o", "nm.safetensors", "--html", "nm.html")[0] == 0
    )
    weight = open_checkpoint(tmp_path / "nm.safetensors")["one.weight"]
    assert ((weight.view(40, 5, 4) != 0).sum(-1) == 2).all()
    assert "<svg" in (tmp_path / "nm.html").read_text()


def test_the_tensor_that_is_cut_is_named(run: Run, tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path / "w.safetensors",
        {"big.weight": torch.randn(9, 9), "small.weight": 1e-6 * torch.randn(9, 9)},
    )
    code, out, _ = run("prune", "w.safetensors", "--amount", "0.6", "-o", "out.safetensors")
    assert code == 0 and "nothing is left of small.weight" in out
    assert "small.weight" in run("inspect", "w.safetensors")[1].split("warning:", 1)[1]
    code, out, _ = run(
        "prune", "w.safetensors", "--amount", "0.6", "--floor", "0.1", "-o", "out2.safetensors", "--json"
    )
    assert [t["kept"] for t in json.loads(out)["tensors"]] == [56, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nowhere.safetensors"), "nowhere.safetensors"),
        (("inspect", "dense.safetensors", "--exclude", "tow.*"), "matches no tensor"),
        (("inspect", "dense.safetensors", "--scope", "wieghts"), "scope 'wieghts' is unknown"),
        (("inspect", "dense.safetensors", "--amount", "utopa"), "Did you mean 'utopia'?"),
        (("inspect", "dense.safetensors", "--amount", "1x"), "must be a number such as 0.9 or 90%"),
        (("inspect", "dense.safetensors", "--floor", "2"), "floor"),
        (("inspect", "dense.safetensors", "--amount", "effective=abc"), "must be a number"),
        (("inspect", "dense.safetensors", "--amount", "knee=7"), "knee takes no value"),
        (("inspect", "dense.safetensors", "--html", "no/where.html"), "the folder no does not exist"),
        (("inspect", "dense.safetensors", "--html", "dense.safetensors"), "give the report a name of its own"),
        (
            ("prune", "dense.safetensors", "-o", "x.safetensors", "--html", "x.safetensors"),
            "give the report a name of its own",
        ),
        (("prune", "dense.safetensors", "--nm", "2:4", "--floor", "0.1", "-o", "x.safetensors"), "--nm fixes"),
        (("prune", "dense.safetensors", "-o", "no/x.safetensors"), "no"),
        (("prune", "dense.safetensors", "-o", "dense.safetensors"), "dense.safetensors"),
        (
            ("finetune", "dense.safetensors", "--model", "digits_cnn", "--data", "digits", "-o", "x", "--floor", "0.1"),
            "say how FILE is pruned",
        ),
        (
            ("finetune", "dense.safetensors", "--model", "digits_cnn", "--data", "digits", "-o", "x", "--parent", "p",
             "--amount", "0.5"),
            "is its own parent",
        ),
        (
            ("finetune", "dense.safetensors", "--model", "digits_cnn", "--data", "digits", "-o", "x",
             "--search-epochs", "1"),
            "belongs to a search",
        ),
        (("demo", "-o", "dense.safetensors"), "is a file; the demonstration writes a folder"),
        (("prune", "dense.safetensors", "--amount", "1.5", "-o", "x.safetensors"), "1.5"),
        (("prune", "dense.safetensors", "--amount", "90", "-o", "x.safetensors"), "90"),
        (("prune", "dense.safetensors", "--allocate", "lam", "-o", "x.safetensors"), "Did you mean 'lamp'?"),
        (("prune", "dense.safetensors", "--nm", "4:2", "-o", "x.safetensors"), "--nm must be kept:group"),
        (
            ("prune", "dense.safetensors", "--amount", "0.95", "--floor", "0.2", "-o", "x.safetensors"),
            "largest sparsity",
        ),
        (
            ("evaluate", "dense.safetensors", "--model", "resnet21", "--data", "digits"),
            "unknown model 'resnet21'",
        ),
        (("evaluate", "dense.safetensors", "--model", "digits_cnn", "--data", "digits"), "does not fit DigitsCNN"),
        (
            ("finetune", "dense.safetensors", "--model", "lenet5", "--data", "digits", "-o", "x", "--amount", "0.5",
             "--budget", "1%"),
            "give one of them",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_two(
    run: Run, dense: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err and err.startswith("espalier: ") and err.count("\n") == 1
    assert not list(dense.parent.glob("x*"))


def test_an_interrupt_is_said_and_leaves_nothing_half_written(
    run: Run, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from espalier.masks import Masks

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Masks, "masked", stop)
    code, _, err = run("prune", "dense.safetensors", "-o", "pruned.safetensors")
    assert code == 130 and "interrupted" in err
    assert [path.name for path in dense.parent.iterdir()] == ["dense.safetensors"]
