"""Compare an answer with its reference: pure functions that scorers use."""
