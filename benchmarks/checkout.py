"""Make this checkout importable where mrisr is not installed, as on a bare machine that has PyTorch and no network.

`import checkout` before mrisr; it does nothing where `pip install` has been there first.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if importlib.util.find_spec("mrisr") is None:
    sys.path.insert(0, str(ROOT))
if importlib.util.find_spec("mrisr.kernels") is None:
    import mrisr

    mrisr.__path__.append(str(ROOT))  # kernels/ is mrisr.kernels (setup.py: package_dir)
