"""Kills Ferry's processes under load and checks that every request is answered, and right."""
