"""Labels against a table written by hand from the definitions."""

import numpy as np
import pytest

from stence_dist.config.targets import TargetsConfig
from stence_dist.errors import ConfigError
from stence_dist.targets import (
    STENOSIS_PARTS,
    STENOSIS_TARGETS,
    TARGETS,
    label,
    largest_percent,
    members,
    stenosis_labels,
)

NAN = float("nan")
UNKNOWN = None


def percents(default: float, **segments: float) -> list[float]:
    """16 percents: `default`, except e.g. s5=80."""
    return [segments.get(f"s{segment}", default) for segment in range(1, 17)]


# name: (segments, has_study, expected label per target at a threshold of 70 where unreported is unknown | normal)
ROWS: dict[str, tuple[list[float], bool, dict[str, tuple[float | None, float | None]]]] = {
    "all reported, none severe": (
        percents(20),
        True,
        {"patient": (0, 0), "rca": (0, 0), "lca": (0, 0), "lm": (0, 0), "lad": (0, 0), "lcx": (0, 0), "seg_16": (0, 0)},
    ),
    "exactly at the threshold": (
        percents(0, s6=70),
        True,
        {
            "patient": (1, 1),
            "rca": (0, 0),
            "lca": (1, 1),
            "lad": (1, 1),
            "lcx": (0, 0),
            "seg_6": (1, 1),
            "seg_7": (0, 0),
        },
    ),
    "just below it": (percents(0, s6=69.9), True, {"patient": (0, 0), "lca": (0, 0), "seg_6": (0, 0)}),
    "one severe, the rest not reported": (
        percents(NAN, s2=90),
        True,
        {
            "patient": (1, 1),
            "rca": (1, 1),
            "lca": (UNKNOWN, 0),
            "lm": (UNKNOWN, 0),
            "seg_2": (1, 1),
            "seg_1": (UNKNOWN, 0),
        },
    ),
    "one mild, the rest not reported": (
        percents(NAN, s2=30),
        True,
        {"patient": (UNKNOWN, 0), "rca": (UNKNOWN, 0), "seg_2": (0, 0), "lca": (UNKNOWN, 0)},
    ),
    "artery complete, the rest not reported": (
        percents(NAN, s1=0, s2=10, s3=20, s4=30),
        True,
        {"rca": (0, 0), "patient": (UNKNOWN, 0), "lca": (UNKNOWN, 0)},
    ),
    "a study without any report": (percents(NAN), True, dict.fromkeys(TARGETS, (UNKNOWN, 0))),
    "no study, no report": (percents(NAN), False, dict.fromkeys(TARGETS, (UNKNOWN, UNKNOWN))),
    "no study, but reported": (
        percents(NAN, s11=80),
        False,
        {"patient": (1, 1), "lcx": (1, 1), "lad": (UNKNOWN, 0), "seg_11": (1, 1), "seg_12": (UNKNOWN, 0)},
    ),
    "only the ramus": (
        percents(0, s16=100),
        True,
        {"patient": (1, 1), "lca": (1, 1), "lad": (0, 0), "lcx": (0, 0), "seg_16": (1, 1)},
    ),
    "only the left main": (percents(0, s5=75), True, {"lm": (1, 1), "lca": (1, 1), "lad": (0, 0), "rca": (0, 0)}),
}


@pytest.mark.parametrize("unreported", ["unknown", "normal"])
@pytest.mark.parametrize("name", ROWS)
def test_labels_of_the_hand_made_table(name: str, unreported: str) -> None:
    """Each row of the table above, all rows of it in one call."""
    segments = np.array([row[0] for row in ROWS.values()], dtype=np.float32)
    has_study = np.array([row[1] for row in ROWS.values()])
    position = list(ROWS).index(name)
    for target, expected in ROWS[name][2].items():
        got = label(segments, target, TargetsConfig(unreported=unreported), has_study)
        assert got.dtype == np.float32
        want = expected[unreported == "normal"]
        np.testing.assert_equal(float(got[position]), NAN if want is None else float(want), err_msg=target)


def test_input_is_left_alone() -> None:
    """`unreported=normal` fills a copy."""
    segments = np.full((2, 16), np.nan, dtype=np.float32)
    label(segments, "patient", TargetsConfig(unreported="normal"), np.array([True, True]))
    assert np.isnan(segments).all()


def test_thresholds_per_segment() -> None:
    """A left main of 50 % counts at its own threshold, in lm, lca and patient; a LAD of 50 % does not."""
    config = TargetsConfig(segment_thresholds={5: 50})
    rows = np.array([percents(0, s5=50), percents(0, s6=50), percents(0, s5=49)], dtype=np.float32)
    study = np.ones(3, dtype=bool)
    for target in ("lm", "lca", "patient", "seg_5"):
        assert label(rows, target, config, study).tolist() == [1, 0, 0], target
    assert label(rows, "patient", TargetsConfig(), study).tolist() == [0, 0, 0]


def test_thresholds_outside_are_refused() -> None:
    """Each by its own name; segment 0 hides no threshold."""
    with pytest.raises(ConfigError, match=r"targets\.threshold is 500"):
        TargetsConfig(threshold=500, segment_thresholds={1: 50})
    with pytest.raises(ConfigError, match="names segment 0"):
        TargetsConfig(segment_thresholds={0: 50})


def test_major_segments_feed_patient_and_arteries_only() -> None:
    """StenCE's eight: a severe OM (12) leaves patient and lca negative, its own target and lcx positive; an
    unreported one leaves them known."""
    rows = np.array([percents(0, s12=90), percents(0, s12=NAN)], dtype=np.float32)
    study = np.ones(2, dtype=bool)
    major = TargetsConfig(segments="major")
    assert label(rows, "patient", major, study).tolist() == [0, 0]
    assert label(rows, "lca", major, study).tolist() == [0, 0]
    np.testing.assert_array_equal(label(rows, "lcx", major, study), [1, np.nan])
    np.testing.assert_array_equal(label(rows, "seg_12", major, study), [1, np.nan])
    np.testing.assert_array_equal(label(rows, "patient", TargetsConfig(), study), [1, np.nan])


def test_members_are_the_aha_segments() -> None:
    """Against the issue's list; every target has members, an unknown one is refused by name."""
    config = TargetsConfig()
    expected = {"rca": range(1, 5), "lca": range(5, 17), "lm": [5], "lad": range(6, 11), "lcx": range(11, 16)}
    for target, segments in expected.items():
        assert members(target, config) == tuple(segments)
    assert members("patient", config) == tuple(range(1, 17))
    assert [members(f"seg_{segment}", config) for segment in range(1, 17)] == [(segment,) for segment in range(1, 17)]
    major = TargetsConfig(segments="major")
    assert [members(t, major) for t in ("rca", "lca")] == [(1, 2, 3), (5, 6, 7, 11, 13)]
    for wrong in ("seg_17", "seg_0", "LAD", "seg_"):
        with pytest.raises(ConfigError, match=f"task.target={wrong}"):
            members(wrong, config)


def test_stenosis_labels_are_the_eleven_targets() -> None:
    """Column for column `label`'s, in StenCE's order, its three parts covering them once."""
    rows = np.array([percents(0, s7=80), percents(NAN, s13=75), percents(NAN)], dtype=np.float32)
    study = np.ones(3, dtype=bool)
    labels = stenosis_labels(rows, TargetsConfig(), study)
    names = ["patient", "rca", "lca"] + [f"seg_{segment}" for segment in (1, 2, 3, 5, 6, 7, 11, 13)]
    assert list(STENOSIS_TARGETS) == names
    assert labels.shape == (3, 11)
    np.testing.assert_array_equal(labels[0], [1, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(labels[1], [1, NAN, 1, NAN, NAN, NAN, NAN, NAN, NAN, NAN, 1])
    assert np.isnan(labels[2]).all()
    covered = [index for part in STENOSIS_PARTS for index in range(11)[part]]
    assert covered == list(range(11))


def test_largest_percent_is_that_of_the_counted_segments() -> None:
    """By hand: of all, of an artery, of major segments alone; unreported is left out or 0; nothing known is NaN."""
    segments = np.array([percents(10, s2=90, s7=60, s12=95), percents(NAN, s7=30), percents(NAN)], dtype=np.float32)
    study = np.array([True, True, False])
    normal, major = TargetsConfig(unreported="normal"), TargetsConfig(segments="major")
    np.testing.assert_array_equal(largest_percent(segments, "patient", TargetsConfig(), study), [95, 30, NAN])
    np.testing.assert_array_equal(largest_percent(segments, "patient", major, study), [90, 30, NAN])
    np.testing.assert_array_equal(largest_percent(segments, "rca", TargetsConfig(), study), [90, NAN, NAN])
    np.testing.assert_array_equal(largest_percent(segments, "rca", normal, study), [90, 0, NAN])
