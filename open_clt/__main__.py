"""``python -m open_clt``: the same as the ``open-clt`` command."""

from open_clt.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
