"""The process of an ensemble: passes tensors from step to step through their queues."""
