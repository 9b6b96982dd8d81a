"""The same as ``ltm-det ib``, from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltm_det.cli.ib import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
