"""Teach an ECG tower from labels and measure it on the test split; `--help` lists every key."""

from stence_dist.config.command import run
from stence_dist.config.finetune import FinetuneConfig


def main(config: FinetuneConfig) -> None:
    """Fit one head or network and measure it."""
    from stence_dist.train.finetune import finetune  # after the config is known to be good: this imports torch

    finetune(config)


if __name__ == "__main__":
    run(FinetuneConfig, "finetune", main)
