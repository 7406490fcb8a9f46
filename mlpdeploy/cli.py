"""The command line: data goes to stdout, talk to stderr; exit 0, 1 (failure) or 2 (usage)."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

import click

from mlpdeploy.env import closest, package_version
from mlpdeploy.errors import MlpDeployError

# In the order in which one needs them. `mlpdeploy <name>` is the function <name> in mlpdeploy/commands/<name>.py.
COMMANDS = (
    "models",
    "export",
    "lower",
    "quantize",
    "sensitivity",
    "plugin",
    "build",
    "verify",
    "predict",
    "serve",
    "eval",
    "bench",
    "load",
    "triton",
    "kserve",
    "inspect",
    "debug",
    "doctor",
)


def _tell(message: Warning | str, *where: Any) -> None:
    """Show a warning as one line, without the line of source that it came from."""
    click.echo(f"mlpdeploy: {message}", err=True)


class Commands(click.Group):
    """A group that turns our errors into one line and an exit code, and suggests the nearest command."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a file's name may have characters that it cannot show
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            click.echo(f"mlpdeploy: the output cannot be written ({error.strerror})", err=True)
            with suppress(OSError):  # Python would try again when it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"mlpdeploy.commands.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _tell  # type: ignore[assignment]
                # Pillow's, of pictures that are refused with our own words.
                warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
                return super().invoke(ctx)
        except MlpDeployError as error:
            click.echo(f"mlpdeploy: {error}", err=True)
            ctx.exit(error.exit_code)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}; {closest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with: mlpdeploy export --model asmlp_s -o asmlp_s && mlpdeploy predict asmlp_s photo.jpg",
)
@click.version_option(package_version(), prog_name="mlpdeploy")
def main() -> None:
    """From a PyTorch checkpoint of AS-MLP, Vision Permutator or CycleMLP to fast, verified inference."""


if __name__ == "__main__":
    main()
