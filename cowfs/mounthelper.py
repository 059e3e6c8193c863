"""`mount.cowfs`, which mount(8) calls: `python -m cowfs.mounthelper`."""

import sys

from cowfs.commands.mounthelper import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
