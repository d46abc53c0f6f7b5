"""The programs: pretraining, supervised training on labels, and the comparison of both."""
