"""Vocabulary of API and workers: errors, settings, datatypes, messages, model specs."""
