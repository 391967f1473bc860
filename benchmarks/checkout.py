"""Make this checkout importable where mrisr is not installed, as on a bare machine that has PyTorch and no network.

`import checkout` before mrisr; it does nothing where `pip install` has been there first.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

sys.path.append(str(ROOT))  # tests/ops holds the operators' cases; and mrisr itself where nobody installed it
if importlib.util.find_spec("mrisr.kernels") is None:
    import mrisr

    mrisr.__path__.append(str(ROOT))  # kernels/ is mrisr.kernels (setup.py: package_dir)
