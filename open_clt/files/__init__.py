"""Files: every artefact is written whole or not at all, and every reader reports a bad file in the same words.

A single file is written under a temporary name in its directory (``.part-NAME``), flushed to the disk, and renamed.
So a reader finds either the former file or the new file, and never half of one.

``saving`` saves several files that belong together as one act, and leaves all other files of their directory alone.
Files may lie in sub-folders, which are made as they are needed, and removed once they are empty.
One of these files is the head. It makes the directory valid: without it, readers find no artefact.

    1. Every new file is written under its temporary name. A failure in this step leaves the former artefact untouched.
    2. A journal, ``.saving-HEAD.json``, lists the names of the former and of the new files. It stands beside the head.
    3. The former files are renamed to ``.old-NAME``, the head first.
    4. The new files get their final names, the head last.
    5. The former files and the journal are deleted.

A failure in these steps gives the former files their names back, the head last. A process that is killed in steps 3 or
4 leaves a directory without a head, so no other program combines the config of one save with the tensors of another.
``saved`` then finds every file of the former artefact under either name, and the next save restores these files first.
``read_saved`` and, for one file alone, ``read_saved_file`` read again if another process saves meanwhile.

Readers open regular files only, and stay inside their folder (``opening``). They take no more memory from a file than
``limits`` allows.

A file that cannot be written, because a disk is full or read-only, raises ResourceError (``disk_errors``).

``ownership`` knows which files OpenCLT wrote and may replace, and ``locked`` lets one run at a time write to a
directory.
"""

from __future__ import annotations

from open_clt.files.derived_tensors import JoinedTensor, ScaledTensor, Table
from open_clt.files.disk_errors import check_disk, disk_errors, free_bytes
from open_clt.files.limits import (
    LARGEST_FEATURE,
    LARGEST_JSON,
    LARGEST_SETTINGS,
    LARGEST_TEXT,
    MOST_FILES,
    check_row_groups,
    check_values,
    too_large,
    unpacked,
)
from open_clt.files.lock import locked, taking_turns
from open_clt.files.npz import open_npz, open_remote_npz
from open_clt.files.opening import check_regular, inside, opened, read_lines
from open_clt.files.ownership import (
    MANIFEST,
    check_artefact,
    check_ours,
    check_results,
    foreign,
    is_ours,
    list_names,
    listed_names,
    results,
)
from open_clt.files.places import (
    check_directory,
    check_file,
    check_readable,
    existing_path,
    make_directory,
)
from open_clt.files.reading import (
    WEIGHT_TYPES,
    WRONG_VALUES,
    FileFormat,
    check_weights,
    file_sha256,
    format_of,
    missing,
    parse_json,
    parse_tensors,
    read_bytes,
    read_json,
    read_rows,
    read_tensors,
    read_text,
    read_unpacked,
    read_yaml,
    unreadable,
)
from open_clt.files.saving import (
    Saved,
    Stage,
    can_be_read,
    finish_save,
    is_interrupted,
    matching,
    read_saved,
    read_saved_file,
    remove_saved,
    saved,
    saving,
)
from open_clt.files.stored_tensors import StoredTensor, check_weight_types, open_remote_tensors, open_tensors
from open_clt.files.writing import (
    TensorBlocks,
    appending,
    continuing,
    filling,
    in_one_block,
    json_text,
    move,
    stream_blocks,
    tensor_bytes,
    write_blocks,
    write_bytes,
    write_json,
    write_parts,
    write_rows,
    write_tensors,
    write_text,
    write_yaml,
    writing,
)

__all__ = [
    "LARGEST_FEATURE",
    "LARGEST_JSON",
    "LARGEST_SETTINGS",
    "LARGEST_TEXT",
    "MANIFEST",
    "MOST_FILES",
    "WEIGHT_TYPES",
    "WRONG_VALUES",
    "FileFormat",
    "JoinedTensor",
    "Saved",
    "ScaledTensor",
    "Stage",
    "StoredTensor",
    "Table",
    "TensorBlocks",
    "appending",
    "can_be_read",
    "check_artefact",
    "check_directory",
    "check_disk",
    "check_file",
    "check_ours",
    "check_readable",
    "check_regular",
    "check_results",
    "check_row_groups",
    "check_values",
    "check_weight_types",
    "check_weights",
    "continuing",
    "disk_errors",
    "existing_path",
    "file_sha256",
    "filling",
    "finish_save",
    "foreign",
    "format_of",
    "free_bytes",
    "in_one_block",
    "inside",
    "is_interrupted",
    "is_ours",
    "json_text",
    "list_names",
    "listed_names",
    "locked",
    "make_directory",
    "matching",
    "missing",
    "move",
    "open_npz",
    "open_remote_npz",
    "open_remote_tensors",
    "open_tensors",
    "opened",
    "parse_json",
    "parse_tensors",
    "read_bytes",
    "read_json",
    "read_lines",
    "read_rows",
    "read_saved",
    "read_saved_file",
    "read_tensors",
    "read_text",
    "read_unpacked",
    "read_yaml",
    "remove_saved",
    "results",
    "saved",
    "saving",
    "stream_blocks",
    "taking_turns",
    "tensor_bytes",
    "too_large",
    "unpacked",
    "unreadable",
    "write_blocks",
    "write_bytes",
    "write_json",
    "write_parts",
    "write_rows",
    "write_tensors",
    "write_text",
    "write_yaml",
    "writing",
]
