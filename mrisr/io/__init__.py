"""Translation between files and other libraries' images on one side and `mrisr.Volume` on the other."""
