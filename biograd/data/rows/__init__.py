"""Rows in memory, in files and in streams: what sources draw them from."""
