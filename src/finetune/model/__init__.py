"""Models: messages to token ids, the frozen base model, and the adapter."""
