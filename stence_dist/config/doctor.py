"""Keys of `launch/doctor.py`."""

from dataclasses import dataclass

from stence_dist.config.field import key


@dataclass
class DoctorConfig:
    """Say what this machine can do, and what is missing for what. Exit code 1 where training would fail."""

    json: bool = key("print JSON instead of text", False)
    folder: str = key("where shards and runs will be: free space, locks and durable writes are tried there", ".")
