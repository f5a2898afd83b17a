"""A model loaded to be used: logits, generation."""
