"""What every room may use: trees of names, the mesh, exit codes."""
