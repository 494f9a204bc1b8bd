"""Existing Brian2 networks, read and made circuits."""
