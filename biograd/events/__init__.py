"""Networks in continuous time."""
