"""Build a shard set from a cohort table, or examine one. See `python shards/build.py --help`."""

from stence_dist.config.build import BuildConfig
from stence_dist.config.command import run
from stence_dist.data.build import build
from stence_dist.data.verify import verify


def main(config: BuildConfig) -> None:
    """Do what the configuration asks for."""
    if config.verify is not None:
        verify(config.verify)
    else:
        build(config)


if __name__ == "__main__":
    run(BuildConfig, "build", main)
