"""What people read at the end: the HTML report, the summary and the model card."""
