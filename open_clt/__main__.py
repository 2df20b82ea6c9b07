"""The program ``open-clt``, which is also ``python -m open_clt``; only programs import this module."""

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:  # noqa: PTH109
    del sys.path[0]  # `python -m` puts the working directory first, where a file could hide a module

from open_clt.interrupts import end_on_signals

end_on_signals("open-clt")

from open_clt.environment import check_environment  # noqa: E402, because signals during this import are handled

check_environment("open-clt")

from open_clt.cli import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
