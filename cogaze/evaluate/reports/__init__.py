"""Generated reports against written ones: scores of words and of findings, and what an error looks like."""
