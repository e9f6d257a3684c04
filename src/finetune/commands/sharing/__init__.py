"""Transfer of a finished run: over a DVC remote to another machine, or as one archive for users of the adapter."""
