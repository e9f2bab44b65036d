"""Parser with short error messages, without the list of all options."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from jsonargparse import ArgumentParser

__all__ = ["BriefErrors", "command_name"]


class BriefErrors(ArgumentParser):
    """A parser whose errors name the command, the error and where the options are listed.

    ``LIGHTNING_UNLEARN_TRACEBACK=1`` in the environment shows what jsonargparse prints.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and exit with code 2."""
        if not self.exit_on_error or os.environ.get("LIGHTNING_UNLEARN_TRACEBACK"):
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        name = command_name(parser)
        text = "\n".join(line for line in message.splitlines() if line.strip() and "Given value" not in line)
        sys.stderr.write(f"{name}: {text}\nOptions: {name} --help\n")
        sys.exit(2)


def command_name(parser: ArgumentParser) -> str:
    """The words that invoke a parser's command.

    Args:
        parser: The parser of a command.
    """
    return str(parser.prog).replace(" [options]", "").replace("__main__.py", "lightning-unlearn")
