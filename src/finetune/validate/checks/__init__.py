"""The checks: each module examines one subject and returns findings."""
