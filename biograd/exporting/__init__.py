"""Hand what a run recorded to other tools: NWB, CSV, NetCDF, TensorBoard."""
