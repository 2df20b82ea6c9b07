"""Dashboards: pages about all features of a transcoder, which open from a disk without a network."""
