"""prepare: turn source files into three splits of examples and a ledger of all rows."""
