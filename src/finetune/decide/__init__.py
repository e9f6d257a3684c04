"""decide: the gate over the evidence, and the verdict."""
