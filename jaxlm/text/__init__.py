"""Text to token ids and back; no jax here."""
