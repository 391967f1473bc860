"""Triton kernels, one file per operator family. They import torch and triton only; `mrisr.ops` decides when
they run."""
