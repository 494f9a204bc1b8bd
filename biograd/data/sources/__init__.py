"""The kinds of source that a recipe names: generated, downloaded, one's own."""
