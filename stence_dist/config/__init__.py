"""The one typed config: a file of dataclasses per group; `load.py` composes them once."""
