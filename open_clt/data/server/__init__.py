"""The server of datasets: activations that were harvested once, for every computer that trains on them.

    GET    /health                               whether the server answers
    GET    /datasets                             the complete datasets
    GET    /datasets/NAME/FILE                   a file of a dataset, whole or a range of bytes, as in a static folder
    GET    /datasets/NAME/tokens?begin=0&end=9   some tokens of a dataset, as one safetensors file
    PUT    /uploads/NAME                         a manifest: an upload begins, or goes on
    PATCH  /uploads/NAME/FILE                    bytes of a file, appended to those that have arrived
    GET    /uploads/NAME                         how many bytes of each file have arrived
    DELETE /uploads/NAME                         an upload is given up
    GET    /openapi.json, /                      all of this, for programs and for people

``datasets`` knows which files are served, ``slices`` cuts tokens out of shards, ``access`` knows tokens (passwords),
``guard`` checks and logs every request, ``app`` and ``writing`` have the addresses, ``page`` is for people, ``uploads``
keeps what has arrived, ``serve`` listens, and ``client`` sends a dataset. The server needs the extra ``server``.
"""
