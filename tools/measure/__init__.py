"""What tools/bench.py and tools/gpu_check.py measure, and how."""
