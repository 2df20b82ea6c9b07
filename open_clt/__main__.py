"""The entry point of ``python -m open_clt``, which does the same as the command ``open-clt``."""

from open_clt.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
