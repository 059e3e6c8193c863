"""The process that a mount survives its daemon with: `python -m cowfs.keeper`."""

import sys

from cowfs.mount.keeper import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
