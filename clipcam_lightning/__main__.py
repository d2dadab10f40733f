"""Run the command line with ``python -m clipcam_lightning``, as ``clipcam`` does."""

import sys

from clipcam_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
