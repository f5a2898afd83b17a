"""Memory on paper, before it is spent."""
