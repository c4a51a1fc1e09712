"""What lies around and between networks: valleys and barriers, flat directions, functions, norms, masks."""

import typer

from espalier.cli import launch
from espalier.cli.landscape import functions, norms, path, plane, project, spectrum, topology

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help=__doc__,
    epilog="Example: espalier landscape path dense.safetensors pruned.safetensors --model resnet20 --data cifar10_jpeg",
)

for module in (path, plane, spectrum, project, functions, norms, topology):
    name = module.__name__.rpartition(".")[2]
    # What goes over all data in sums can be shared out.
    run = launch.several if module in (path, plane, spectrum, project) else launch.alone
    app.command(name, help=module.__doc__, no_args_is_help=True)(run(module.command))
