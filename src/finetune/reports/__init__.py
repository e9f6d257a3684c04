"""The stages' typed JSON reports, which later stages read in addition to rows and weights."""
