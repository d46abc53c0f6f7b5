"""Embed ECG files with a trained tower; `--help` lists every key."""

from stence_dist.config.embed import EmbedConfig
from stence_dist.config.load import run
from stence_dist.embed import embed

if __name__ == "__main__":
    run(EmbedConfig, "embed", embed)
