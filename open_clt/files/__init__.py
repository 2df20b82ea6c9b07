"""Files: every artefact is written whole or not at all, and every reader reports a bad file in the same words.

A single file is written under a temporary name in its directory (``.part-NAME``), flushed to the disk, and renamed.
So a reader finds either the former file or the new file, and never half of one.

``saving`` saves several files that belong together as one act, and leaves all other files of their directory alone.
One of these files is the head. It makes the directory valid: without it, readers find no artefact.

    1. Every new file is written under its temporary name. A failure in this step leaves the former artefact untouched.
    2. The former files are renamed to ``.old-NAME``, the head first.
    3. The new files get their final names, the head last.
    4. The former files are deleted.

A failure in step 2 or 3 gives the former files their names back, the head last. A process that is killed in these steps
leaves a directory without a head, so no reader combines the config of one save with the tensors of another. ``saved``
then finds every file of the former artefact under either name. A reader that does not use ``saved`` raises an error
which says that saving was interrupted, and names the former file.

``saving_directory`` replaces a whole directory, which must belong to one artefact alone.

Readers open regular files only, and stay inside their folder (``opening``). They take no more memory from a file than
``limits`` allows.

Two processes must not save the same artefact at the same time.
"""

from __future__ import annotations

from open_clt.files.limits import LARGEST_FEATURE, LARGEST_TEXT, unpacked
from open_clt.files.opening import check_regular, inside, opened, read_lines
from open_clt.files.places import (
    check_directory,
    make_directory,
)
from open_clt.files.reading import (
    FileFormat,
    format_of,
    missing,
    parse_json,
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
    Stage,
    kept,
    remove_directory,
    saved,
    saving,
    saving_directory,
)
from open_clt.files.writing import (
    write_bytes,
    write_json,
    write_rows,
    write_tensors,
    write_text,
    writing,
)

__all__ = [
    "LARGEST_FEATURE",
    "LARGEST_TEXT",
    "FileFormat",
    "Stage",
    "check_directory",
    "check_regular",
    "format_of",
    "inside",
    "kept",
    "make_directory",
    "missing",
    "opened",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_lines",
    "read_rows",
    "read_tensors",
    "read_text",
    "read_unpacked",
    "read_yaml",
    "remove_directory",
    "saved",
    "saving",
    "saving_directory",
    "unpacked",
    "unreadable",
    "write_bytes",
    "write_json",
    "write_rows",
    "write_tensors",
    "write_text",
    "writing",
]
