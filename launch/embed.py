"""Embed ECG files with a trained tower; `--help` lists every key."""

from stence_dist.config.command import run
from stence_dist.config.embed import EmbedConfig


def main(config: EmbedConfig) -> None:
    """Embed files."""
    from stence_dist.embed import embed  # after the config is known to be good: this imports torch

    embed(config)


if __name__ == "__main__":
    run(EmbedConfig, "embed", main)
