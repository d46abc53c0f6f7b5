"""How good an ECG model is: statistics, probes and kNN on features, retrieval, label efficiency, report."""
