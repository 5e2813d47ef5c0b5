"""An ensemble's process: passes tensors from step to step."""
