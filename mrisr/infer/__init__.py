"""From a scan and a model to a finer scan: plan, then run.

The journey, as `run.upscale_volume` lists it. Everything on the way is frozen: a stage takes what it reads and returns
what it makes.

    facts     what planning starts from: options, geometry, the model, the machine
    plan      `plan_scan` -> Plan, once, before a stage runs: grids, point spread, engine and why, tile rule,
              memory, consistency, warnings; `plan_frame` -> FramePlan, from the plan and a frame's foreground
    start     per frame: scale, bias taken out, noise, the start y on the target grid, what the network is told
    denoise   the residual: the engine on one piece, on tiles or layer by layer; mirrorings, samples, CUDA graphs
    finish    consistency with the scan, interpolation in air and beyond end slices, bias and units back -> FrameResult
    account   Plan and FrameResults -> Info

Stages work on tensors, or, in a plain job on a CPU, on NumPy arrays: then nothing imports PyTorch.

Beside the stages: `known` (models whose graph the cache has), `tiles` (foreground box, pieces, blending), `memory`
(what a job takes), `corrections` (the way between the two grids, with gradient nonlinearity and bias field), `fade`
(where the network counts), `engines` (what runs the network: one protocol, one file each), `info` (what a run says of
itself), `progress`.
"""
