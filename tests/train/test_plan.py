"""What a run will do, before it does it."""

import numpy as np
import pytest

from stence_dist.errors import DataError
from stence_dist.train.plan import _partners


@pytest.mark.parametrize("patients", [[1, 2, 3], [1, 1, 2, 2, 3], [5, 5, 5, 1, 2, 3], [4, 4, 9, 9]])
def test_shuffled_studies_are_other_patients(patients: list[int]) -> None:
    """Every study is given once, and never to its own patient."""
    patient, rows = np.array(patients), np.arange(len(patients)) * 10
    partners = _partners(patient, rows, seed=3)
    assert sorted(partners) == sorted(rows)
    assert (patient[partners // 10] != patient).all()


def test_a_patient_of_more_than_half_cannot_be_shuffled() -> None:
    """Some would keep a study of their own, and the control would control nothing."""
    with pytest.raises(DataError, match="one patient has 3 of the 5 pairs"):
        _partners(np.array([1, 1, 1, 2, 3]), np.arange(5), seed=0)
