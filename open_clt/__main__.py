"""The entry point of ``python -m open_clt``, which does the same as the command ``open-clt``."""

import sys
from pathlib import Path

from open_clt.cli import main

if __name__ == "__main__":
    # `python -m` puts the working directory first, where a file could hide an installed package.
    if not sys.flags.safe_path and sys.path[:1] == [str(Path.cwd())]:
        del sys.path[0]
    raise SystemExit(main())
