"""What a setting costs, before it is run: operations, parameters, memory of the compiled step, an estimated time."""
