"""Say what this machine can do: `python launch/doctor.py [json=true]`."""

from stence_dist.config.command import run
from stence_dist.config.doctor import DoctorConfig
from stence_dist.doctor import doctor

if __name__ == "__main__":
    run(DoctorConfig, "doctor", doctor)
