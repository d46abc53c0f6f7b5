"""Can a linear probe read the site from an embedding? What it can read, a stenosis model may use as a shortcut."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stence_dist.evaluate.probe import FOLDS, STRENGTHS, standardization
from stence_dist.evaluate.statistics import Floats, auroc, interval, patient_counts, replicates, weighted_auroc
from stence_dist.seeds import derive

_STRENGTH = STRENGTHS[len(STRENGTHS) // 2]  # fixed: choosing it by site would need folds within folds
_DRAWS = 200


class SiteProbe(NamedTuple):
    """How well site is read from n rows that no fit has seen, one site against all others."""

    rows: int
    patients: int
    sites: dict[str, tuple[int, float]]  # name -> rows and AUROC
    auroc: float  # mean over sites
    low: float | None  # 95 % interval by patient
    high: float | None


def probe_sites(
    embeddings: NDArray[np.floating], site: NDArray[np.str_], patient: NDArray[np.int64], *, seed: int
) -> SiteProbe | None:
    """Cross-validated by patient: logistic regression of site (n,), "" = unknown, on embeddings (n, E).

    Sites of fewer than 5 patients are left out; None where fewer than two remain. Chance is 0.5.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    names = [name for name in np.unique(site) if name and len(np.unique(patient[site == name])) >= FOLDS]
    if len(names) < 2:
        return None
    kept = np.isin(site, names)
    features, truth, groups = embeddings[kept].astype(np.float64), site[kept], patient[kept]
    scores = np.zeros((len(truth), len(names)))
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=derive(seed, "site folds") % 2**32)
    for fit, held in splitter.split(features, truth, groups):
        center, scale = standardization(features[fit])
        model = LogisticRegression(C=_STRENGTH, max_iter=2000).fit((features[fit] - center) / scale, truth[fit])
        found = _scores(model, (features[held] - center) / scale)
        for name, column in found.items():
            scores[held, names.index(name)] = column
    counts = patient_counts(groups, _DRAWS, seed)

    def mean_area(weights: Floats) -> Floats:
        areas = [weighted_auroc(truth == name, scores[:, place], weights) for place, name in enumerate(names)]
        return np.asarray(np.mean(areas, axis=0))

    areas = {str(name): auroc(truth == name, scores[:, place]) for place, name in enumerate(names)}
    low, high = interval(replicates(mean_area, counts))
    return SiteProbe(
        rows=len(truth),
        patients=len(np.unique(groups)),
        sites={name: (int((truth == name).sum()), float(value)) for name, value in areas.items() if value is not None},
        auroc=float(mean_area(np.ones((1, len(truth))))[0]),
        low=low,
        high=high,
    )


def _scores(model: Any, features: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Probability (n,) of each site that the fit has seen."""
    return dict(zip((str(name) for name in model.classes_), model.predict_proba(features).T, strict=True))
