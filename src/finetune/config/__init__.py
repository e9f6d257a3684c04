"""Typed and strict models of params.yaml and the recipes."""
