"""Figures, drawn by matplotlib once for the page and once for paper, each with its numbers."""
