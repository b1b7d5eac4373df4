"""The command line."""

from vfm_inverse.cli.program import main

__all__ = ["main"]
