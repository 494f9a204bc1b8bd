"""Brian2: its text as neurons, its simulations, whole networks as a box."""
