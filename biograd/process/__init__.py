"""What is set in the process that biograd runs in: memory, threads, and what users may say no to."""
