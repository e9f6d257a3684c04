"""The records exchanged between stages."""
