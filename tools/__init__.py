"""Programs for developers: what they write is made from the code."""
