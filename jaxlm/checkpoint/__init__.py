"""Committed, digested, verified checkpoints; the only room that imports orbax."""
