"""The lesion test must see lesions kept, erased and invented."""

from __future__ import annotations

import numpy as np

from mrisr.evaluate import safety
from mrisr.evaluate.cases import CASES
from mrisr.evaluate.methods import build_methods
from mrisr.evaluate.metrics import filtered

ZEROFILL = build_methods(["zerofill"])["zerofill"]


def lesions(head, method, case="iso2"):
    return safety.lesion_test(head, CASES[case], method, diameters=(3.0, 4.0), contrasts=(0.3, 0.6))


def test_zero_filling_keeps_every_lesion(head):
    result = lesions(head, ZEROFILL)
    assert result.inserted >= 4
    assert result.survived == result.visible == result.recovered == result.inserted
    assert result.ghosts == result.phantoms == result.invented == 0
    np.testing.assert_allclose(result.amplitudes, 1, atol=0.05)


def test_an_over_smoothing_method_loses_them(head):
    result = lesions(head, lambda trial: filtered(ZEROFILL(trial), 3.0))
    assert result.survived < result.inserted
    assert result.recovered == 0


def test_an_inventing_method_is_caught(head):
    def inventing(trial):
        out = ZEROFILL(trial).copy()
        centre = [n // 2 for n in out.shape]
        out[tuple(slice(c - 4, c + 4) for c in centre)] += 400
        return out

    assert lesions(head, inventing).phantoms > 0


def test_a_method_that_leaves_a_removed_lesion_in_place_is_caught(head):
    """It answers with every lesion, in the scan or not: all survive, and all are invented."""
    kinds = {"diameters": (3.0, 4.0), "contrasts": (0.3, 0.6)}
    placed = safety.place_lesions(head, CASES["iso2"], 0, **kinds)
    remembered = safety.insert(head, placed, float(np.median(head.data[head.mask]))).data - head.data
    result = lesions(head, lambda trial: ZEROFILL(trial) + remembered)
    assert result.invented == result.visible == result.inserted == len(placed)
    assert result.survived == result.inserted  # what a test of survival alone would be content with


def test_an_echoing_method_is_caught(head):
    """Lesions copied to where there are none, as a network with a long memory might."""
    result = lesions(head, lambda trial: ZEROFILL(trial) + 0.8 * np.roll(ZEROFILL(trial), 24, axis=0))
    assert result.ghosts > 0


def test_lesions_are_visible_only_above_the_noise(head):
    from dataclasses import replace

    loud = replace(CASES["iso2n"], noise=0.3)
    result = safety.lesion_test(head, loud, ZEROFILL, diameters=(2.0,), contrasts=(0.15,))
    assert result.inserted >= 1 and result.visible < result.inserted


def test_three_class_thresholds_separate_three_classes():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(m, 5, 4000) for m in (20, 80, 150)])
    low, high = safety.three_class_thresholds(values)
    assert 32 < low < 68 and 92 < high < 138
