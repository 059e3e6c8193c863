"""The process that serves a mount through FUSE: `python -m cowfs.daemon`."""

import sys

from cowfs.mount.daemon import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
