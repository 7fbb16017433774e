"""``python -m ocps_jobmanager`` is ``ocps-jobmanager``."""

import sys

from ocps_jobmanager.cli import main

if __name__ == "__main__":
    sys.exit(main())
