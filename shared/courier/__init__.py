"""Sends the requests of one process to Redis in shared writes, collects their answers."""
