"""The whole job in a minute, on scikit-learn's digits.

Trains a small network, inspects it, prunes it, fine-tunes one epoch, packs the file and writes report.html.

For example:

  espalier demo -o demo
"""

from pathlib import Path
from typing import Annotated

import typer

from espalier._errors import EspalierError
from espalier.cli import options


def command(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")] = Path(
        "demo"
    ),
    amount: Annotated[str, typer.Option(metavar="RULE", help="As in `espalier prune`.")] = "utopia",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training the dense network.")] = 12,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Run the demonstration."""
    from espalier.checkpoint import open_checkpoint, save_checkpoint
    from espalier.checkpoint.atomic import made
    from espalier.cli import names
    from espalier.finetuning import finetune
    from espalier.inspection import inspect
    from espalier.models import DigitsCNN, load_weights
    from espalier.pruned_file import prune_file
    from espalier.pruning import prune
    from espalier.report import demo as report
    from espalier.report.progress import progress_bar
    from espalier.selection import select
    from espalier.train import Training, fit

    if output.exists() and not output.is_dir():
        raise EspalierError(f"{output} is a file; the demonstration writes a folder")
    made(output)
    data = names.dataset("digits", None)
    with progress_bar(not as_json) as bar:

        def follow(word: str):  # type: ignore[no-untyped-def]
            task = bar.add_task(word, total=None)
            return lambda done, total, _: bar.update(task, completed=done, total=total)

        dense = names.fresh(DigitsCNN, seed)
        fit(
            dense,
            data,
            Training(epochs=epochs, lr=0.05, seed=seed),
            progress=follow("training the dense network"),
        )
        save_checkpoint(output / "dense.safetensors", dense.state_dict())

        checkpoint = open_checkpoint(output / "dense.safetensors")
        selection = select(checkpoint)
        found = inspect(checkpoint, selection)
        sparsity = names.amount(amount).choose(found.profile).sparsity

        network = load_weights(DigitsCNN(), checkpoint.state_dict())
        masks = prune(network, sparsity)
        tuned = finetune(
            network,
            data,
            Training(epochs=1, lr=0.01, seed=seed),
            masks=masks,
            parent=dense,
            recalibration=True,
            progress=follow("fine-tuning one epoch"),
        )
    save_checkpoint(output / "tuned.safetensors", network.state_dict())
    packed = open_checkpoint(output / "tuned.safetensors")
    small = prune_file(packed, select(packed), sparsity, output / "small.safetensors", sparse=True)
    report.write_html(found, tuned, small, output / "report.html")
    print(report.as_json(found, tuned, small) if as_json else report.as_text(found, tuned, small, output))
