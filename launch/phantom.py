"""Write a synthetic cohort: python launch/phantom.py out=COHORT patients=N seed=S [ecg_only=0] [null=true]"""

from pathlib import Path

from stence_dist.config.command import run
from stence_dist.config.phantom import PhantomConfig
from stence_dist.phantom.cohort import COHORT_FILE, write_cohort


def main(config: PhantomConfig) -> None:
    """Write the cohort, or find it written, and print what it holds."""
    summary = write_cohort(config)
    ceiling = summary["ceiling_auroc"]
    print(
        f"{summary['pairs']} pairs with {summary['views']} runs, {summary['ecg_only']} with an ECG alone\n"
        f"prevalence of {summary['severe_percent']} % stenosis: {summary['prevalence']:.3f}\n"
        "ceiling, AUROC of the true ischemia against the label as read: "
        + ("undefined, one class only" if ceiling is None else f"{ceiling:.3f}")
    )
    print(Path(config.out) / COHORT_FILE)


if __name__ == "__main__":
    run(PhantomConfig, "phantom", main)
