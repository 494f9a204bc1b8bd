"""Networks as graphs: populations, the projections between them, and what is read."""
