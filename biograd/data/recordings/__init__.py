"""Recordings, a file each or a piece of one: listed with labels, packed once, read by number."""
