"""``python -m ltm_det.cli`` is ``ltm-det``."""

import sys

from ltm_det.cli import main

if __name__ == "__main__":
    sys.exit(main())
