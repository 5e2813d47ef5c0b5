"""Sends the requests of one process in shared writes, collects answers."""
