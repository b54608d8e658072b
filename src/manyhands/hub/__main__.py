"""`python -m manyhands.hub`: the hub as a process."""

import sys

from manyhands.hub.main import main

if __name__ == "__main__":
    sys.exit(main())
