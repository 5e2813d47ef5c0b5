"""The parts of a `config.pbtxt`: each module reads one block of it."""
