"""Many scans through `mrisr.api.upscale`: folders, lists, BIDS datasets, clusters.

`mrisr.batch.scans` says what an input and an output mean, `mrisr.batch.run` works through the list,
`mrisr.batch.deliver` writes each result with its sidecar so that nothing is lost, half written or written twice.
"""
