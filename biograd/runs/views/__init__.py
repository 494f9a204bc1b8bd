"""What a run gives to work with: spikes by trial, arrays by snapshot, tables."""
