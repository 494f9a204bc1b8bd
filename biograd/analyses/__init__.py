"""Analyses of recorded activity: arrays in, named arrays out, and the same for what a run holds."""
