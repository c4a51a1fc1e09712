"""Write the dense form of a sparse file, bit for bit.

For example:

  espalier unpack small.safetensors -o dense.safetensors
"""

from espalier.cli import options


def command(file: options.Checkpoint, output: options.Output, as_json: options.AsJson = False) -> None:
    """Unpack a sparse file."""
    from espalier.checkpoint import open_checkpoint, unpack
    from espalier.report.text import dump, size

    before = open_checkpoint(file).bytes_on_disk
    written = unpack(file, output)
    options.say(*written.notes)
    if as_json:
        print(dump({"path": str(output), "bytes_before": before, "bytes_after": written.bytes}))
    else:
        print(f"{output}: {size(written.bytes)}, from {size(before)}")
