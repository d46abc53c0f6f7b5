"""The page of a run: what its folder holds, read from files alone, without models."""
