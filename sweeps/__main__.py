"""`python -m sweeps COMMAND ...`: plan sweeps, launch them, see how far they are, and what went wrong.

Exit codes: 0 all is well; 1 something failed, or is not done; 2 the command cannot be carried out as it was typed, or on this
store; 130 Ctrl-C; 141 the reader of the output went away.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from sweeps.commands import COMMANDS
from sweeps.commands.arguments import UsageError, epilog, sweeps


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        from mmprompt.settings.spelling import nearest

        return refused(f"there is no command {name}{nearest(name, COMMANDS)}\n\n{usage()}")
    command = import_module(f"sweeps.commands.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m sweeps {name}",
        description=command.__doc__,
        epilog=epilog(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    given = parser.parse_intermixed_args(rest)
    from mmprompt.runs.files import StoreError, follow_mode, vanished
    from mmprompt.settings.parsing import ConfigError  # pydantic, and all that takes time: help does without

    try:
        if "runs" in given:
            follow_mode(given.runs)
        code: int = command.run(given)
        sys.stdout.flush()
        return code
    except (UsageError, ConfigError, StoreError) as error:
        return refused(str(error))
    except BrokenPipeError:  # `plan | head` ends quietly, and what python would still flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.filename is None:
            raise
        return refused(vanished(error))


def refused(why: str) -> int:
    print(f"sweeps: {why}", file=sys.stderr)
    return 2


def usage() -> str:
    rows = [f"  {name:<8} {import_module(f'sweeps.commands.{name}').SUMMARY}" for name in COMMANDS]
    more = "`python -m sweeps COMMAND --help` says more."
    return "\n".join(["usage: python -m sweeps COMMAND ...\n", *rows, f"\nsweeps: {', '.join(sweeps())}", more])


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that lacks a character shows ? instead
    sys.exit(main(sys.argv[1:]))
