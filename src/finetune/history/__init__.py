"""The two JSON files that git keeps: uses of the test set, and results by seed."""
