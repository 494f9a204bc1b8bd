"""Brian2's compiled statements as expressions that torch differentiates."""
