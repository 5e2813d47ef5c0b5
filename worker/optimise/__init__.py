"""From a trained model to a fast version of it: export, comparison, proof."""
