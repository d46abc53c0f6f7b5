"""Write report.html of what a run folder holds; `--help` lists every key."""

from stence_dist.config.load import run
from stence_dist.config.report import ReportConfig
from stence_dist.evaluate.report import report

if __name__ == "__main__":
    run(ReportConfig, "report", report)
