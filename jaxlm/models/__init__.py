"""The network; the only room that imports flax."""
