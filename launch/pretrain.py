"""Pretrain two towers on pairs: `deepspeed launch/pretrain.py data.shards=SHARDS run_dir=RUN`."""

from stence_dist.config.load import run
from stence_dist.config.pretrain import PretrainConfig


def main(config: PretrainConfig) -> None:
    """Run or resume one pretraining."""
    from stence_dist.train.pretrain import pretrain  # after the config is known to be good: this imports DeepSpeed

    pretrain(config)


if __name__ == "__main__":
    run(PretrainConfig, "pretrain", main)
