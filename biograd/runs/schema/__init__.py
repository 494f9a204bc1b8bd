"""What stands where in a run file: tables, axes, units, and what each thing is."""
