"""Field strength: T1 within published ranges, the MPRAGE signal against a pulse-by-pulse simulation, honest maps."""

import numpy as np
import pytest
import torch

from mrisr.errors import InputError, UsageError
from mrisr.physics import field
from mrisr.physics.field import MPRAGE, TissuePeaks

PUBLISHED = {  # s, at 1.5, 3 and 7 T
    "white": ((0.56, 0.65), (0.83, 0.9), (1.1, 1.3)),
    "grey": ((0.9, 1.2), (1.3, 1.6), (1.8, 2.1)),
    "csf": ((3.9, 4.1),) * 3,
}
PEAKS = TissuePeaks(white=900.0, grey=620.0, csf=180.0)


def pulse_by_pulse(sequence: MPRAGE, t1: float) -> float:
    """Longitudinal magnetisation followed through inversion, readout train and delay until nothing changes."""
    angle, m = np.radians(sequence.flip), 1.0
    before = sequence.ti - sequence.pulses // 2 * sequence.echo_spacing
    after = sequence.tr - before - sequence.pulses * sequence.echo_spacing

    def relaxed(m, time):
        return 1 - (1 - m) * np.exp(-time / t1)

    for _ in range(60):
        m = relaxed(-sequence.inversion * m, before)
        for pulse in range(sequence.pulses):
            if pulse == sequence.pulses // 2:
                signal = m * np.sin(angle)
            m = relaxed(m * np.cos(angle), sequence.echo_spacing)
        m = relaxed(m, after)
    return signal


@pytest.fixture(scope="module")
def brain():
    """(scan [X, Y, Z] float64 with tissue at PEAKS and 2 % noise, label volume)."""
    rng = np.random.default_rng(0)
    lines = [np.linspace(-1, 1, 40)[i] for i in np.ix_(*[range(40)] * 3)]
    radius = np.sqrt(sum(v**2 for v in lines))
    folded = np.sin(9 * lines[0]) * np.sin(8 * lines[1]) + 0.5 * np.sin(10 * lines[2])
    label = np.select([radius > 0.85, radius < 0.3], [3, 0], np.where(folded > 0, 1, 2))  # csf, white, grey, air
    level = np.array([PEAKS.csf, PEAKS.white, PEAKS.grey, 0.0])[label]
    return np.hypot(level + rng.normal(0, 18, level.shape), rng.normal(0, 18, level.shape)), label


@pytest.mark.parametrize("tissue", field.TISSUES)
def test_t1_lies_within_what_was_published(tissue):
    for b0, (low, high) in zip((1.5, 3.0, 7.0), PUBLISHED[tissue]):
        assert low <= field.tissue_t1(tissue, b0) <= high


def test_scaling_t1_takes_tissues_to_tissues():
    t1 = torch.tensor([field.tissue_t1(name, 3.0) for name in field.TISSUES], dtype=torch.float64)
    expected = torch.tensor([field.tissue_t1(name, 7.0) for name in field.TISSUES], dtype=torch.float64)
    assert torch.allclose(field.scale_t1(t1, 3.0, 7.0), expected)
    line = torch.linspace(0.3, 5.0, 200, dtype=torch.float64)
    assert torch.diff(field.scale_t1(line, 1.5, 7.0)).min() > 0


@pytest.mark.parametrize("b0", field.PROTOCOLS)
def test_the_signal_is_that_of_following_every_pulse(b0):
    sequence = field.PROTOCOLS[b0]
    for t1 in (0.3, 0.84, 1.43, 4.0):
        found = float(sequence.signal(torch.tensor(t1, dtype=torch.float64)))
        assert found == pytest.approx(pulse_by_pulse(sequence, t1), abs=1e-9)
    signal = sequence.signal(torch.linspace(0.3, 4.5, 100, dtype=torch.float64))
    assert torch.diff(signal).max() < 0  # a steady map of T1


def test_the_same_field_changes_nothing_and_white_matter_keeps_its_brightness(brain):
    scan = torch.from_numpy(brain[0])
    assert field.change_field(scan, 3.0, 3.0, peaks=PEAKS) is scan
    for to in (1.5, 7.0):
        levels = torch.tensor([PEAKS.white, PEAKS.grey, PEAKS.csf], dtype=torch.float64)
        made = field.change_field(levels, 3.0, to, peaks=PEAKS)
        assert float(made[0]) == pytest.approx(PEAKS.white, rel=1e-6)
        before, after = field.protocol(3.0), field.protocol(to)
        for tissue, old, new in zip(field.TISSUES, levels, made):
            t1 = [torch.tensor(field.tissue_t1(tissue, b), dtype=torch.float64) for b in (3.0, to)]
            white = [torch.tensor(field.tissue_t1("white", b), dtype=torch.float64) for b in (3.0, to)]
            ratio = after.signal(t1[1]) / before.signal(t1[0]) * before.signal(white[0]) / after.signal(white[1])
            assert float(new / old) == pytest.approx(float(ratio), rel=0.03)


def test_contrast_changes_as_the_laws_say_and_back_again(brain):
    scan, label = torch.from_numpy(brain[0]).float(), brain[1]
    pairs = {b0: field.change_field(scan, 3.0, b0) for b0 in (1.5, 3.0, 7.0)}
    ratio = {b0: float(v[label == 2].median() / v[label == 1].median()) for b0, v in pairs.items()}
    assert ratio[7.0] < ratio[3.0] < ratio[1.5]
    order = scan.flatten().argsort()
    assert torch.diff(pairs[7.0].flatten()[order]).min() >= -1e-3  # monotone: no tissue passes another
    back = field.change_field(pairs[7.0], 7.0, 3.0)
    assert (back - scan).abs()[label < 3].median() < 0.02 * PEAKS.white
    assert field.change_field(scan[None, None], 3.0, 7.0, peaks=PEAKS).shape == (1, 1, *scan.shape)


def test_maps_are_differentiable_and_odd():
    x = torch.tensor([-50.0, 100.0, 400.3, 700.3, 1500.0], dtype=torch.float64, requires_grad=True)
    y = field.change_field(x, 3.0, 7.0, peaks=PEAKS)
    (slope,) = torch.autograd.grad(y.sum(), x)
    step = 1e-4
    numeric = field.change_field(x + step, 3.0, 7.0, peaks=PEAKS) - field.change_field(x - step, 3.0, 7.0, peaks=PEAKS)
    assert torch.allclose(slope, numeric.detach() / (2 * step), rtol=1e-6) and slope.min() > 0
    assert torch.equal(field.change_field(-x.detach(), 3.0, 7.0, peaks=PEAKS), -y.detach())


def test_tissue_peaks_are_found(brain):
    scan, label = brain
    for mask in (None, label < 3):
        found = field.tissue_peaks(scan, mask=mask)
        for name in field.TISSUES:
            assert getattr(found, name) == pytest.approx(getattr(PEAKS, name), abs=0.04 * PEAKS.white), (name, found)
    with pytest.raises(InputError, match="is the scan T1-weighted"):
        field.tissue_peaks(np.where(label < 3, 500.0 + brain[0] / 100, 0.0))
    with pytest.raises(InputError, match="voxels above the background"):
        field.tissue_peaks(scan[:6, :6, :6])
    with pytest.raises(InputError, match="expected white > grey > CSF"):
        TissuePeaks(1.0, 2.0, 0.5)


def test_noise_follows_field_and_voxel_volume():
    assert field.noise_level(2.0, 3.0, 1.0, 1.5, 1.0) == pytest.approx(4.0)
    assert field.noise_level(2.0, 3.0, 1.0, 3.0, 8.0) == pytest.approx(0.25)


def test_arguments_are_named():
    with pytest.raises(UsageError, match="field strength: expected 0.3 to 12 T, found 30"):
        field.tissue_t1("white", 30)
    with pytest.raises(UsageError, match="tissue_t1: expected one of"):
        field.tissue_t1("fat", 3.0)
    with pytest.raises(UsageError, match="do not fit into TR"):
        MPRAGE(ti=0.9, tr=1.0, flip=9.0, echo_spacing=0.0071)
    with pytest.raises(UsageError, match="expected positive times"):
        MPRAGE(ti=-0.9, tr=2.0, flip=9.0, echo_spacing=0.0071)
    with pytest.raises(UsageError, match="noise_level: expected sigma >= 0"):
        field.noise_level(-1.0, 3.0, 1.0, 1.5, 1.0)
