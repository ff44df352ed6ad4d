"""`interneuron`: the commands by name, each in a module that is imported only when the command runs."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from interneuron.core.errors import InterneuronError, did_you_mean

# name -> (module:attribute, one line of help). The attribute is a function or a typer.Typer with sub-commands.
COMMANDS: dict[str, tuple[str, str]] = {
    "tour": ("interneuron.cli.tour:tour", "Read, steer and patch a language model; ends with one report.html"),
    "sites": ("interneuron.cli.model:sites", "List the sites of a model: where activations can be read and edited"),
    "steer": ("interneuron.cli.model:steer", "Find a direction from contrasting texts and generate with it"),
    "record": ("interneuron.cli.store:record", "Write a model's activations on texts to a store, resumable"),
    "store": ("interneuron.cli.store:app", "Verify a store or show what is in it"),
    "convert": ("interneuron.cli.convert:convert", "Turn dictionaries and steering vectors of one tool into another's"),
    "inspect": ("interneuron.cli.convert:inspect", "Say what a file or folder of any tool holds, without running it"),
    "fit": ("interneuron.cli.fit:fit", "Fit a method to a model or to data and save what it learned"),
    "methods": ("interneuron.cli.methods:methods", "List the methods, or find them by purpose with --search"),
    "show": ("interneuron.cli.methods:show", "Everything about one method: purpose, equations, claim and its verdict"),
    "cite": ("interneuron.cli.methods:cite", "Print the BibTeX entries of methods"),
    "claims": ("interneuron.cli.claims:app", "Run the papers' claims on small models and show the verdicts"),
    "organisms": ("interneuron.cli.organisms:app", "List, check or train the small models that ship with the package"),
}


class LazyGroup(TyperGroup):
    """A group that knows its commands from a table and imports one only to run it."""

    listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; while help is being written, a stand-in that only has the help line."""
        if cmd_name not in COMMANDS:
            return None
        where, text = COMMANDS[cmd_name]
        if self.listing:
            return TyperCommand(name=cmd_name, help=text)
        return _load(cmd_name, where, text)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As usual, with a suggestion for a mistyped name."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"no command {args[0]!r}.{did_you_mean(args[0], COMMANDS)} `interneuron --help` lists all")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help text from the table alone."""
        self.listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self.listing = False


def _load(name: str, where: str, text: str) -> Any:
    module, _, attribute = where.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        command: Any = typer.main.get_group(found)
        command.name, command.help = name, command.help or text
        return command
    single = typer.Typer(add_completion=False)
    single.command(name, epilog=getattr(sys.modules[module], "EPILOG", None))(found)
    return typer.main.get_command(single)


app = typer.Typer(
    name="interneuron",
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Read, understand and rewrite the activations of any PyTorch network."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("interneuron"))
        raise typer.Exit


def main() -> None:
    """Run the command line; an error of the library is one line on stderr and exit status 1."""
    try:
        app()
    except InterneuronError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
