"""Say what data hold and what is wrong: `python launch/check.py path=FILE|FOLDER|COHORT|SHARDS [out=DIR]`."""

from stence_dist.config.check import CheckConfig
from stence_dist.config.command import run


def main(config: CheckConfig) -> None:
    """Look, and say."""
    from stence_dist.check.examine import check  # after the config is known to be good: this imports the readers

    check(config)


if __name__ == "__main__":
    run(CheckConfig, "check", main)
