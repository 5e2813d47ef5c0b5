"""The door: who may ask."""
