"""Compare probe, fine-tuning, scratch and baselines over few labels; `--help` lists every key."""

from stence_dist.config.command import run
from stence_dist.config.compare import CompareConfig


def main(config: CompareConfig) -> None:
    """Run the comparison."""
    from stence_dist.train.compare import compare  # after the config is known to be good: this imports torch

    compare(config)


if __name__ == "__main__":
    run(CompareConfig, "compare", main)
