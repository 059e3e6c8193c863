"""The process that empties the trash of a store: `python -m cowfs.emptying`."""

import sys

from cowfs.store.emptying import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
