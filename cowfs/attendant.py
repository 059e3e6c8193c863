"""The process beside a mount that overlayfs serves: `python -m cowfs.attendant`."""

import sys

from cowfs.mount.attendant import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
