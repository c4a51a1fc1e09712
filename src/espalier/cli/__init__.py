"""The command line: one file a command: its arguments, what it gathers from the library, one call to a report.

Nothing here imports torch before a command runs: `espalier --help` answers at once.
"""

import sys

import typer

from espalier import EspalierError, __version__
from espalier.cli import (
    bench,
    compare,
    demo,
    evaluate,
    export,
    finetune,
    inspect,
    landscape,
    launch,
    prune,
    train,
    unpack,
)

app = typer.Typer(
    name="espalier",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="How far can this PyTorch network be pruned, prune it so that it still works, and why believe it.",
    epilog="Example: espalier inspect model.safetensors --html report.html",
)

for module in (inspect, prune, unpack, finetune, train, compare, evaluate, export, bench, demo):
    name = module.__name__.rpartition(".")[2]
    run = launch.several if module in (train, finetune) else launch.alone
    app.command(name, help=module.__doc__, no_args_is_help=module is not demo)(run(module.command))
app.add_typer(landscape.app, name="landscape")


@app.callback(invoke_without_command=True)
def version(
    show: bool = typer.Option(False, "--version", is_eager=True, help="Print the version and stop."),
) -> None:
    """Options of the program itself."""
    if show:
        print(f"espalier {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; user errors are one line and status 2, an interrupt is 130, bugs keep their traceback."""
    try:
        app()
    except EspalierError as error:
        print(f"espalier: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as stop:
        if stop.code == 130:
            print("espalier: interrupted; what was written is complete", file=sys.stderr)
        raise
