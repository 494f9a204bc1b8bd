"""Rules that run a trial in parts: what is stored is one of them, whatever the length."""
