"""The command line: ``vfm-inverse SUBCOMMAND``.

A run lives in a folder (:mod:`vfm_inverse.runs.folder`): ``train`` makes one, the others read it.

Exit codes: 0 success; 1 training diverged, an operator failed its verification, or the calibration
verdict is "fail" and ``--strict`` was given; 2 bad input, with one line on
standard error; 130 interrupted, by Ctrl-C or SIGTERM; 141 nobody reads the output any more.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from vfm_inverse.cli.arguments import build_parser
from vfm_inverse.cli.commands import SUBCOMMANDS
from vfm_inverse.cli.console import one_line, plain_warnings, say
from vfm_inverse.runtime.files import CONFIG
from vfm_inverse.runtime.interruption import Interrupted, going_on, terminable

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Args:
        argv: the arguments; those of the process when missing.
    """
    args = build_parser(SUBCOMMANDS).parse_args(argv)
    try:
        with plain_warnings(), terminable():
            return int(args.run(args))
    except KeyboardInterrupt as stop:
        where = f": {stop.where}" if isinstance(stop, Interrupted) else ""
        say(f"vfm-inverse: interrupted{where}", sys.stderr)
        if hasattr(args, "resume") and (args.out / CONFIG).is_file():
            say(f"go on with: {going_on(sys.argv[1:] if argv is None else argv)}", sys.stderr)
        return 130
    except BrokenPipeError:
        with suppress(OSError, ValueError, AttributeError):  # no second complaint at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (
        ValueError,
        TypeError,
        OSError,
        ImportError,
        FloatingPointError,
        MemoryError,
    ) as error:
        if args.debug:
            raise
        say(f"vfm-inverse: error: {one_line(error)}", sys.stderr)
        return 1 if isinstance(error, FloatingPointError) else 2
    except RuntimeError as error:
        # torch has no class of its own for a processor's memory.
        if args.debug or not any(t in str(error) for t in ("allocate memory", "out of memory")):
            raise
        say(f"vfm-inverse: error: {one_line(error)[:300]}", sys.stderr)
        return 2
