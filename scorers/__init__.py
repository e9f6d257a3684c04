"""Your own scorers; README.md explains how to write one."""
