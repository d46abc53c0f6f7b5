"""Join a table of ECGs and a table of studies into a cohort table. See `python shards/pair.py --help`."""

from stence_dist.config.command import run
from stence_dist.config.pair import PairConfig
from stence_dist.data.pair import pair

if __name__ == "__main__":
    run(PairConfig, "pair", pair)
