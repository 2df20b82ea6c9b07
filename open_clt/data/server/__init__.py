"""The server of datasets: activations that were harvested once, for every computer that trains on them.

    GET    /health                               whether the server answers
    GET    /datasets                             the complete datasets
    GET    /datasets/NAME/FILE                   a file of a dataset, whole or a range of bytes, as in a static folder
    GET    /datasets/NAME/tokens?begin=0&end=9   some tokens of a dataset, as one safetensors file
    GET    /openapi.json, /                      all of this, for programs and for people

``datasets`` knows which files are served, ``slices`` cuts tokens out of shards, ``access`` knows tokens (passwords),
``guard`` checks and logs every request, ``app`` has the addresses, ``page`` the page for people, and ``serve`` listens.
It needs the extra ``server``.
"""
