"""Teach an ECG tower from labels and measure it on the test split; `--help` lists every key."""

from stence_dist.config.finetune import FinetuneConfig
from stence_dist.config.load import run
from stence_dist.train.finetune import finetune

if __name__ == "__main__":
    run(FinetuneConfig, "finetune", finetune)
