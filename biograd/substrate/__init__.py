"""Who runs the forward passes of a network: hooks, passes, copies."""
