"""Write the dense form of a sparse file, bit for bit.

For example:

  espalier unpack small.safetensors -o dense.safetensors
"""

import json

from espalier.cli import options


def command(file: options.Checkpoint, output: options.Output, as_json: options.AsJson = False) -> None:
    """Unpack a sparse file."""
    from espalier.checkpoint import unpack
    from espalier.pruned_file import size_on_disk
    from espalier.report.text import size

    written = unpack(file, output)
    before = size_on_disk(file)
    if as_json:
        print(json.dumps({"path": str(output), "bytes_before": before, "bytes_after": written.bytes}))
    else:
        print(f"{output}: {size(written.bytes)}, from {size(before)}")
