"""Actions of operators: load, unload and route versions, look into queues."""
