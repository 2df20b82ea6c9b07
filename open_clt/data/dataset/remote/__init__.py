"""Datasets on a server: their files are fetched into a folder of the cache, checked, and read from there.

``server`` fetches files over HTTP, and asks again where a failure may pass. ``folder`` keeps the files of a dataset, of
which the shards that were not used for the longest time are deleted when the cache is full.
"""
