"""Actions of operators."""
