"""Distributed contrastive pretraining of ECG models on paired ECGs and coronary angiograms, and their evaluation."""

__version__ = "0.1.0"
