"""What is set in the process that biograd runs in: memory, locks, and what users say no to."""
