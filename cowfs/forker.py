"""The process that mounts are forked from: `python -m cowfs.forker`."""

import sys

from cowfs.mount.forker import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
