"""The two JSON files in git: uses of the test set, and results by seed."""
