"""Keys of `launch/report.py`."""

from dataclasses import dataclass

from stence_dist.config.field import key


@dataclass
class ReportConfig:
    """Write report.html of what a run folder holds: one self-contained page."""

    run_dir: str = key("folder of a pretraining, fine-tuning or comparison run")
