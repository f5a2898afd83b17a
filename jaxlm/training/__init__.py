"""The step, the optimizers and the loop around them."""
