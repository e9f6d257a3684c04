"""The stages' JSON reports, typed: what crosses between stages beside rows and weights."""
