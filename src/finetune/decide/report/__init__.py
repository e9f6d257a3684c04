"""The documents for readers: the HTML report, the summary and the model card."""
