"""What an answer is beside its reference: pure functions that scorers are made of."""
