"""``python -m vfm_inverse``: the command line, where the script is not on the path."""

import sys

from vfm_inverse.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
