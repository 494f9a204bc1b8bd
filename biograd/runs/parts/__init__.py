"""The parts folder, in which a run grows until it is packed into its file."""
