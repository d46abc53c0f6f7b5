"""A synthetic cohort of paired ECGs and coronary angiograms: the measuring instrument, and the default to try.

Patient i is a pure function of (seed, i) and of the knobs in `config/phantom.py`. There are two versions of its ECG
(`version=`), and the knobs' defaults are the frozen difficulty of each: whatever changes what a patient looks like
raises that version's number here and changes the golden hash in the tests.
"""

# Frozen difficulty by version. The numbers count all that were ever frozen, so that none stands for two cohorts.
DIFFICULTY_VERSION = {1: 2, 2: 3}
