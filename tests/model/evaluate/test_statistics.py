from __future__ import annotations

import math

import numpy as np
import pytest

from lumid.model.evaluate.statistics import Floats, difference, draws, holm, interval, sampled


def test_a_draw_takes_whole_patients() -> None:
    patients = ["a", "a", "b", "c", "c", "c"]
    weights = np.concatenate(list(draws(patients, 50)))
    assert weights.shape == (50, 6)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()


def test_intervals_cover_what_they_promise_and_those_of_images_would_not() -> None:
    """Means of images of 40 patients, whose images are alike: 95 % intervals have the truth in 89 to 98 of 100."""
    random = np.random.default_rng(1)
    by_patient = by_image = 0
    for _ in range(200):
        of = np.repeat(np.arange(40), 5)
        values = random.normal(0, 1, 40)[of] + random.normal(0, 0.3, 200)

        def mean(weights: Floats, values: Floats = values) -> dict[str, Floats]:
            return {"mean": weights @ values / weights.sum(1)}

        for patients in (of, np.arange(200)):
            one = interval(float(values.mean()), sampled(mean, patients.astype(str).tolist(), 300)["mean"])
            hit = one.low <= 0 <= one.high
            by_patient += hit and patients is of
            by_image += hit and patients is not of
    assert 0.89 * 200 <= by_patient <= 0.98 * 200
    assert by_image < 0.75 * 200


def test_a_paired_test_finds_a_difference_and_none_where_there_is_none() -> None:
    random = np.random.default_rng(2)
    common = random.normal(0, 1, 1000)
    close = difference(0.1, common + 0.1 + random.normal(0, 0.01, 1000), common)
    assert close.p < 0.01
    assert 0 < close.low < 0.1 < close.high
    assert difference(0.0, common, common).p == 1
    assert difference(0.0, random.permutation(common), common).p > 0.5
    assert math.isnan(difference(0.0, common * np.nan, common).p)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert math.isnan(holm([float("nan"), 0.02])[0])
