"""Parts of a laboratory's own: one file each, one line each in the entry points."""
