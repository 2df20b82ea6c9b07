"""Jobs: what pages ask of the models. ``table.py`` has all of them; each reads a request and returns the work to do."""
