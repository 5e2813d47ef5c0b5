"""Other servers with the same models, beside Ferry, written as the tutorial of each has it."""
