"""Pages that need nothing else: no network, no script; what comes from a file is escaped."""
