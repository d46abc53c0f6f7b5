"""Write report.html of what a run folder holds; `--help` lists every key."""

from stence_dist.config.command import run
from stence_dist.config.report import ReportConfig


def main(config: ReportConfig) -> None:
    """Write the page."""
    from stence_dist.evaluate.report.page import report  # after the config is known to be good: this imports matplotlib

    report(config)


if __name__ == "__main__":
    run(ReportConfig, "report", main)
