"""evaluate: base and candidate on the test split, in one load, and what they cost."""
