"""The same as ``ltm-det test``, from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ltm_det.cli.test import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
