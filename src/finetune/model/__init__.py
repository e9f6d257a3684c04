"""The model wing: messages to token ids, the frozen base, the adapter."""
