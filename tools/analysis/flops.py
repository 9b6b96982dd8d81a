"""The same as ``ltm-det flops``, from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ltm_det.cli.flops import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
