"""What touches a disk: files that appear in full or not at all, and locks.

Everything that biograd writes goes through :func:`replacing` (or, line by line, through
:func:`append_line`), so that one rule holds for all of it:

* a file is written under a random name that did not exist, then takes its place by one rename;
* a link that lies under the target's name is replaced by the file, never followed; folders on the
  way to it are those that the user named, links or not;
* its permissions are those of any new file (``umask``).

Why fsync and rename: a rename replaces a name at once, and the file behind it must be on disk
before the name is; then the folder that holds the name must be, too.
"""

from biograd.disk.atomic import (
    append_line,
    check_name,
    check_target,
    filling,
    is_temporary,
    open_appending,
    read_bytes,
    read_text,
    remove,
    replacing,
    sha256,
    sync_folder,
    write_bytes,
    write_json,
    write_together,
    writing,
)
from biograd.disk.locks import Lock, is_held

__all__ = [
    "Lock",
    "check_name",
    "check_target",
    "append_line",
    "filling",
    "is_held",
    "is_temporary",
    "open_appending",
    "read_bytes",
    "read_text",
    "remove",
    "replacing",
    "sha256",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_together",
    "writing",
]
