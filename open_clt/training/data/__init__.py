"""Data of a training run: where activations come from, what is read of them before the first step, and their batches.

``activations`` has the sources that a language model computes, ``stored`` datasets on disk or under a URL.
``preparation`` reads once for the statistics, and ``module`` mixes tokens into batches.
"""
