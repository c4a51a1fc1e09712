"""Time the ways to deploy a pruned network, and say which one to take: also when it is not this file.

For example:

  espalier bench pruned.safetensors --model resnet20

  espalier bench pruned/ --model hf:pruned --input-shape 128 --threads 2 --json

  espalier bench pruned.safetensors --model resnet20 --data cifar10_jpeg --limit 1000
"""

from pathlib import Path
from typing import Annotated

import typer

from espalier._errors import EspalierError
from espalier.cli import inputs, names, options


def command(
    file: options.Checkpoint,
    model: options.Model,
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="One input without the batch, such as 3x32x32; of text, its number of tokens. Known by name.",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also measure accuracy on this data; see evaluate.")
    ] = None,
    data_root: options.DataRoot = None,
    limit: options.Limit = None,
    batches: Annotated[str, typer.Option(metavar="SIZES", help="Batch sizes.")] = "1,8,32",
    threads: Annotated[int, typer.Option(min=1, help="Threads of every row, pinned.")] = 1,
    rounds: Annotated[int, typer.Option(min=5, help="Samples of each row, taken in turn.")] = 20,
    seconds: Annotated[
        float, typer.Option(min=0, help="Time for the rounds of one batch size; five are made in any case.")
    ] = 20.0,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the plan of the first batch size, for accelerate."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Bench a checkpoint file."""
    from tempfile import TemporaryDirectory

    import torch

    from espalier._forward import probe
    from espalier.checkpoint import open_checkpoint
    from espalier.checkpoint.atomic import file_target
    from espalier.export import to_sparse
    from espalier.report import bench as report
    from espalier.report.progress import progress_bar
    from espalier.runtime.bench import bench
    from espalier.runtime.ways import WAYS

    sizes = _sizes(batches)
    checkpoint = open_checkpoint(file)
    if plan is not None:
        file_target(plan, checkpoint.files)  # before anything is measured
    dataset = None if data is None else names.dataset(data, data_root, limit=limit)
    classes = inputs.classes(checkpoint) if dataset is None else len(dataset.classes)
    network = names.model(model, classes, checkpoint, str(file)).model
    if dataset is not None:
        probe(network, dataset, f"--model {model}")
        input_shape = input_shape or "x".join(map(str, dataset.input_shape))
    example = inputs.example(model, network, input_shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with TemporaryDirectory() as folder, progress_bar(not as_json) as bar:
            steps = 1 + len(sizes) * (len(WAYS) + 1) + (0 if dataset is None else len(WAYS))
            task = bar.add_task("writing the sparse file", total=steps)
            shards = checkpoint.layout is not None and checkpoint.layout.folder is not None
            written = to_sparse(checkpoint, Path(folder) / ("sparse" if shards else "sparse.safetensors"))
            result = bench(
                network,
                example,
                sparse_bytes=written.bytes,
                batches=sizes,
                split=None if dataset is None else dataset.test,
                rounds=rounds,
                seconds=seconds,
                progress=lambda what: bar.update(task, description=what, advance=1),
            )
    finally:
        torch.set_num_threads(before)
    if plan is not None:
        if sizes[0] in result.plans:
            result.plans[sizes[0]].save(plan)
        else:
            options.say(f"{plan} was not written: espalier did not run, see the table for the reason")
    options.say(*checkpoint.notes, *written.notes)
    print(report.as_json(result) if as_json else report.as_text(result))


def _sizes(word: str) -> tuple[int, ...]:
    parts = [part.strip() for part in word.split(",")]
    if all(part.isdigit() and int(part) > 0 for part in parts):
        return tuple(dict.fromkeys(int(part) for part in parts))
    raise EspalierError(f"--batches must be sizes such as 1,8,32, got {word!r}")
