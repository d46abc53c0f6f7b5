"""One synthetic patient: a pure function of (seed, number), pinned; what knobs do; what null means."""

import dataclasses
import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stence_dist.config.phantom import PhantomConfig, PhantomDiseaseConfig, PhantomMorphologyConfig
from stence_dist.errors import ConfigError
from stence_dist.evaluate.st_features import st_features
from stence_dist.phantom import DIFFICULTY_VERSION
from stence_dist.phantom.ecg import draw_ecg
from stence_dist.phantom.morphology import Morphology, draw_morphology
from stence_dist.phantom.patient import PhantomPatient, patient
from stence_dist.phantom.physiology import Physiology, draw_physiology
from stence_dist.seeds import generator


def config(**keys: object) -> PhantomConfig:
    return PhantomConfig(out="", patients=1, **keys)


def digest(drawn: PhantomPatient) -> str:
    """Integers only: 0.01 mV steps absorb the last bits in which machines differ."""
    content = hashlib.sha256(np.round(drawn.ecg * 100).astype("<i4").tobytes())
    content.update(drawn.segments.astype("<i4").tobytes())
    for run in drawn.views:
        content.update(run.frames.tobytes())
        content.update(f"{run.primary:.1f} {run.secondary:.1f} {run.key_frame}".encode())
    return content.hexdigest()[:16]


@pytest.mark.parametrize(
    ("version", "difficulty", "digests"),
    [(1, 2, ["5f42e71decf6da45", "f6ca15170833c5c4"]), (2, 3, ["e6833469a8ca149b", "0e561e7408fa2e49"])],
)
def test_frozen_difficulty(version: int, difficulty: int, digests: list[str]) -> None:
    """Patients look as they did when each version's difficulty was frozen. A change here needs a new number."""
    assert DIFFICULTY_VERSION[version] == difficulty
    assert [digest(patient(11, index, config(version=version))) for index in (0, 5)] == digests


def test_version_2_changes_the_ecg_alone() -> None:
    """With every knob at 0 version 2 is version 1 (to rounding); with its defaults it differs in the ECG only."""
    none = dataclasses.replace(PhantomMorphologyConfig(), **dict.fromkeys(vars(PhantomMorphologyConfig()), 0.0))
    one, two = patient(11, 5, config(version=1)), patient(11, 5, config(version=2))
    np.testing.assert_allclose(
        patient(11, 5, config(version=2, morphology=none), images=False).ecg, one.ecg, rtol=0, atol=1e-12
    )
    assert np.abs(one.ecg - two.ecg).max() > 0.02
    assert digest(dataclasses.replace(two, ecg=one.ecg)) == digest(one)
    np.testing.assert_array_equal(one.ischemia, two.ischemia)


def test_pure_function() -> None:
    """Equal to itself after other patients were drawn; different for another seed and another number."""
    first = digest(patient(3, 7, config()))
    patient(3, 8, config())
    larger = PhantomConfig(out="elsewhere", patients=500, ecg_only=20, ecg_only_test=5, workers=1)
    assert digest(patient(3, 7, larger)) == first
    assert digest(patient(4, 7, config())) != first
    assert digest(patient(3, 8, config())) != first
    without_images = patient(3, 7, config(), images=False)
    assert without_images.views == []
    np.testing.assert_array_equal(without_images.ecg, patient(3, 7, config()).ecg)


def test_prevalence_and_ceiling() -> None:
    """Over 900 patients: prevalence of 70 % near .40, ischemia against the label as read near .97 (phantom facts)."""
    drawn = [patient(21, index, config(), images=False) for index in range(900)]
    severe = np.array([one.segments.max() >= 70 for one in drawn])
    assert 0.36 < severe.mean() < 0.44
    assert 0.94 < roc_auc_score(severe, [one.ischemia.sum() for one in drawn]) < 0.99
    # Hand-made features: .80 on this phantom, with much to spare for sampling.
    assert 0.75 < hand_auroc(drawn) < 0.85


def test_null_is_independent() -> None:
    """No causal path and no common cause: hand-made features are at chance, and age tells nothing about the ECG."""
    drawn = [patient(5, index, config(null=True), images=False) for index in range(700)]
    assert 0.45 < hand_auroc(drawn) < 0.55
    assert max(one.ischemia.max() for one in drawn) == 0
    severe = [one.segments.max() >= 70 for one in drawn]
    assert 0.36 < np.mean(severe) < 0.45
    ages = [one.physiology.age for one in drawn]
    t_wave = [float(np.ptp(one.ecg[7])) for one in drawn]
    assert abs(np.corrcoef(ages, t_wave)[0, 1]) < 0.08
    assert np.corrcoef(ages, severe)[0, 1] > 0.05


@pytest.mark.parametrize("switch", [{"null": True}, {"ischemia_mv": 0.0}])
def test_no_ischemia_no_sign(switch: dict[str, object]) -> None:
    """In version 2 both switches leave an ECG that a cohort without stenoses and one full of them have in common."""
    for index in range(3):
        spared, ill = (
            patient(5, index, config(version=2, disease=PhantomDiseaseConfig(offset=offset), **switch), images=False)
            for offset in (-20.0, 20.0)
        )
        assert spared.segments.max() < 20 < 90 < ill.segments.max()
        np.testing.assert_array_equal(spared.ecg, ill.ecg)
    mixed = patient(5, 0, config(version=2, disease=PhantomDiseaseConfig(offset=20.0)), images=False)
    assert np.abs(mixed.ecg - patient(5, 0, config(version=2, ischemia_mv=0.0), images=False).ecg).max() > 0.05


def test_null_of_version_2_knows_the_other_person_only() -> None:
    """The ECG, drawn again from the other person alone, for one whose age decides on a block and one whose does not."""
    two = config(version=2, null=True)

    def other(index: int) -> Physiology:
        return draw_physiology(generator(5, "phantom", "other", index), two.disease)

    def share(index: int, person: Physiology) -> Morphology:
        return draw_morphology(generator(5, "phantom", "morphology", index), person, two.morphology)

    def own(index: int) -> Physiology:
        return draw_physiology(generator(5, "phantom", "physiology", index), two.disease)

    blocks = [
        (share(index, own(index)).block is None, share(index, other(index)).block is None) for index in range(300)
    ]
    for index in (0, next(index for index, (first, second) in enumerate(blocks) if first != second)):
        person = other(index)
        again = draw_ecg(generator(5, "phantom", "ecg", index), person, np.zeros(3), two.ecg, share(index, person))
        np.testing.assert_array_equal(patient(5, index, two, images=False).ecg, again)


def hand_auroc(drawn: list[PhantomPatient]) -> float:
    features = np.stack([st_features(one.ecg, 500) for one in drawn])
    severe = np.array([one.segments.max() >= 70 for one in drawn])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    scores = cross_val_predict(model, features, severe, cv=3, method="predict_proba")[:, 1]
    return float(roc_auc_score(severe, scores))


def test_mismatch_swaps_the_ecg_alone() -> None:
    """mismatch=1 changes ECG and shown ischemia, and nothing that a study or its reader knows."""
    own, swapped = patient(2, 4, config()), patient(2, 4, config(mismatch=1.0))
    np.testing.assert_array_equal(own.segments, swapped.segments)
    assert own.physiology.age == swapped.physiology.age
    for run, other in zip(own.views, swapped.views, strict=True):
        np.testing.assert_array_equal(run.frames, other.frames)
    assert np.abs(own.ecg - swapped.ecg).max() > 0.1
    changed = [
        not np.array_equal(
            patient(2, index, config(), images=False).ischemia,
            patient(2, index, config(mismatch=0.3), images=False).ischemia,
        )
        for index in range(120)
    ]
    assert 0.05 < np.mean(changed) < 0.40  # 30 %, less those whose two ECGs show no ischemia


def test_knobs_change_sizes_and_not_people() -> None:
    """Without label noise the worst segment is the true stenosis; without ischemia the ECG alone differs."""
    drawn = patient(9, 3, config(label_noise=0.0), images=False)
    assert drawn.segments.max() == pytest.approx(100 * drawn.physiology.stenosis.max(), abs=0.5)
    calm = patient(9, 3, config(ischemia_mv=0.0), images=False)
    np.testing.assert_array_equal(calm.physiology.stenosis, drawn.physiology.stenosis)
    assert calm.ischemia.sum() == 0


def test_views() -> None:
    """1 or 2 left runs, 1 right, and in about 15 % a further one almost without contrast."""
    runs = [patient(1, index, config()).views for index in range(100)]
    uninformative = [sum(not run.informative for run in views) for views in runs]
    assert 0.08 < np.mean(uninformative) < 0.23
    for views in runs:
        shown = [run.artery for run in views if run.informative]
        assert shown.count("right") == 1
        assert shown.count("left") in (1, 2)
        for run in views:
            assert run.frames.shape == (6, 64, 64)
            if run.informative:  # the key frame has the most contrast, the first frame none
                shade = run.frames[:1].astype(float) - run.frames
                assert shade.mean(axis=(1, 2)).argmax() == run.key_frame
                assert np.quantile(shade[run.key_frame], 0.97) > 15


def test_refused_configs() -> None:
    """Shares outside 0 to 1, no patient at all, more test patients than there are: refused with the key's name."""
    for keys in ({"mismatch": 1.5}, {"label_noise": -1.0}, {"ecg_only_test": 1}, {"workers": 0}, {"version": 3}):
        with pytest.raises(ConfigError, match=next(iter(keys))):
            config(**keys)
    with pytest.raises(ConfigError, match="patients"):
        PhantomConfig(out="", patients=0)
    with pytest.raises(ConfigError, match=r"morphology\.block"):
        PhantomMorphologyConfig(block=2.0)
    with pytest.raises(ConfigError, match=r"image\.size"):
        config(image=dataclasses.replace(config().image, size=4))
