"""Pretrain two towers on pairs: `deepspeed launch/pretrain.py data.shards=SHARDS run_dir=RUN`."""

from stence_dist.config.command import run
from stence_dist.config.pretrain import PretrainConfig


def main(config: PretrainConfig) -> None:
    """Run or resume one pretraining, or try everything out in two steps."""
    # After the config is known to be good: these import DeepSpeed.
    from stence_dist.train.dry_run import dry_run
    from stence_dist.train.pretrain import pretrain

    (dry_run if config.dry_run else pretrain)(config)


if __name__ == "__main__":
    run(PretrainConfig, "pretrain", main)
