"""What a run is: the schema, YAML with overrides, and errors that name the line."""
