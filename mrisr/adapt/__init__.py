"""The scan teaches too: a network fine-tuned on the sharp planes of the scan that it is about to answer.

    options   what it goes with, as far as the arguments say
    seconds   how long, and how many steps that is
    plan      what may learn, from what, for how many steps, in how much memory: decided before a voxel is touched
    pairs     the scan, scanned once more with its slices along an in-plane axis
    learn     the steps, and what the planes say that were held back
    run       answer, learn, judge, answer again; the weights that leave

As SMORE (Zhao et al., IEEE TMI 40(3), 2021) and ECLARE (Remedios et al., 2025) do; what is learnt differs, see
`pairs`. docs/adapt.md has what it is worth.
"""
