"""plan: predict the properties of a run before it starts."""
