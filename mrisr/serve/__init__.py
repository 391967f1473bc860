"""Services: one bounded queue, several doors. Each door only finds scans and delivers results; the work is
`mrisr.api.upscale`."""
