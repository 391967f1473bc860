"""The cases of every operator, and how near its backends have to come."""

from tests.ops.cases import (
    attention3d,
    axis_apply,
    group_norm,
    noise,
    prefilter,
    resample3d,
    rms_norm,
    sampler_step,
    tiles,
)

_ALL = (
    attention3d.SPEC,
    axis_apply.SPEC,
    tiles.BLEND,
    tiles.GATHER,
    group_norm.SPEC,
    noise.SPEC,
    prefilter.SPEC,
    resample3d.SPEC,
    rms_norm.SPEC,
    sampler_step.SPEC,
)
SPECS = {spec.family.name: spec for spec in _ALL}
