"""What crosses between stages."""
