"""Take a checkpoint away: ONNX with sparse weights, a torch file, dense or sparse safetensors.

For example:

  espalier export pruned.safetensors --to onnx --model resnet20 -o pruned.onnx

  espalier export folder/ --to onnx --model hf:folder -o encoder.onnx

  espalier export small.safetensors --to torch -o weights.pt
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from espalier._errors import EspalierError
from espalier.cli import inputs, names, options


def command(
    file: options.Checkpoint,
    output: options.Output,
    to: Annotated[
        Literal["onnx", "torch", "safetensors", "sparse"],
        typer.Option(
            "--to",
            help="onnx needs --model; torch, safetensors and sparse are the tensors alone, bit for bit.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The network, for onnx: lenet5, digits_cnn, resnet20|32|44|56|110, vgg16, wrn28x10, torchvision:NAME, "
            "hf:FOLDER, or package.module:function.",
        ),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="One input without the batch, such as 3x32x32; of text, its number of tokens. Known by name.",
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Classes of the network; else read off its last matrix.")
    ] = None,
    opset: Annotated[
        int | None, typer.Option(min=1, help="Version of the ONNX operators; else the default of torch.")
    ] = None,
    indices: Annotated[
        Literal["int64", "small"],
        typer.Option(
            help="Positions of the values: int64, as the ONNX standard says; small (int16, int32) is smaller, and "
            "onnxruntime reads it too."
        ),
    ] = "int64",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Fix every size, the batch at this many; else the batch is left open."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0, help="Largest difference to the module, over its largest output; else 1e-4 in float32."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Export a checkpoint file."""
    from espalier.checkpoint import open_checkpoint
    from espalier.report import export as report
    from espalier.report.progress import progress_bar

    checkpoint = open_checkpoint(file)
    if to != "onnx":
        from espalier import export

        write = {"torch": export.to_torch, "safetensors": export.to_safetensors, "sparse": export.to_sparse}[
            to
        ]
        converted = write(checkpoint, output)
        options.say(*checkpoint.notes)
        print(report.converted_json(converted) if as_json else report.converted_text(converted))
        return
    from espalier.checkpoint.atomic import file_target
    from espalier.export import to_onnx

    model = _model(model, file)
    file_target(output, checkpoint.files)
    with progress_bar(not as_json) as bar:
        bar.add_task("tracing and checking", total=None)
        network = names.model(model, classes or inputs.classes(checkpoint), checkpoint, str(file)).model
        example = inputs.example(model, network, input_shape)
        exported = to_onnx(
            network,
            example if batch is None else example.with_rows(batch),
            output,
            opset=opset,
            indices=indices,
            fixed=batch is not None,
            tolerance=tolerance,
        )
    options.say(*checkpoint.notes)
    before = checkpoint.bytes_on_disk
    print(report.as_json(exported, before) if as_json else report.as_text(exported, before))


def _model(model: str | None, file: Path) -> str:
    if model is not None:
        return model
    if (file / "config.json").is_file():
        return f"hf:{file}"
    raise EspalierError("--to onnx needs --model: weights alone do not say what is computed with them")
