"""Import a published OTiS or StenCE checkpoint as an ECG tower; `--help` lists every key."""

from stence_dist.config.command import run
from stence_dist.config.import_weights import ImportWeightsConfig


def main(config: ImportWeightsConfig) -> None:
    """Import one checkpoint."""
    from stence_dist.models.import_weights import import_weights  # after the config is known to be good: imports torch

    import_weights(config)


if __name__ == "__main__":
    run(ImportWeightsConfig, "import_weights", main)
