"""A synthetic cohort of paired ECGs and coronary angiograms: the measuring instrument, and the default to try.

Patient i is a pure function of (seed, i) and of the knobs in `config/phantom.py`. The knobs' defaults are frozen:
whatever changes what a patient looks like raises `DIFFICULTY_VERSION` and the golden hash in the tests.
"""

DIFFICULTY_VERSION = 2
