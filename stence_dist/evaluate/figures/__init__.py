"""The pictures of a run, one way to draw each thing, for the pages and for TensorBoard."""
