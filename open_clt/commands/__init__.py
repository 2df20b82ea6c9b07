"""The commands of ``open-clt``; each module defines the options of one command and runs it."""
