"""``python -m clipcam_lightning`` is ``clipcam``."""

import sys

from clipcam_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
