"""Compare probe, fine-tuning, scratch and baselines over few labels; `--help` lists every key."""

from stence_dist.config.compare import CompareConfig
from stence_dist.config.load import run
from stence_dist.train.compare import compare

if __name__ == "__main__":
    run(CompareConfig, "compare", compare)
