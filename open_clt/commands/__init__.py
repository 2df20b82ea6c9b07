"""The commands of ``open-clt``, one file each: what can be typed, and what it does."""
