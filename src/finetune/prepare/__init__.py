"""prepare: source files -> three splits of examples and the ledger of every row."""
