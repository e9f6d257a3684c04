"""The hardware of this machine and its capabilities."""
