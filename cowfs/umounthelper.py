"""`umount.cowfs`, which umount(8) calls: `python -m cowfs.umounthelper`."""

import sys

from cowfs.commands.umounthelper import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
