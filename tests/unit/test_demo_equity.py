"""The disparity of the demo: one group's one feature in another unit, and nothing else."""

import numpy as np

from infra.demo_equity import ATTRIBUTE, FEATURE, GROUP, KPA, in_other_units
from infra.demo_models import Rows


def test_one_feature_of_one_group_is_in_another_unit() -> None:
    features = np.arange(12, dtype=np.float32).reshape(3, 4)
    rows = Rows(features.copy(), [{ATTRIBUTE: GROUP}, {ATTRIBUTE: "group 2"}, {ATTRIBUTE: GROUP}], ["a", "b", "c"])
    changed = in_other_units(rows)
    expected = features.copy()
    expected[[0, 2], FEATURE] *= np.float32(KPA)
    np.testing.assert_allclose(changed.features, expected, rtol=1e-6)
    np.testing.assert_array_equal(rows.features, features)
    assert (changed.attributes, changed.subjects) == (rows.attributes, rows.subjects)
