"""What runs the network: one protocol (`engine`), one choice (`select`), one file per engine.

The PyTorch engine can run layer by layer: `program` is the network as a list of steps, `slabs` runs it. `graph` holds
the loop of an engine on a GPU. No name of a library is bound here: this package has submodules called torch and
openvino.
"""

from mrisr.infer.engines.engine import Engine, Network
from mrisr.infer.engines.select import NAMES, Choice, check_fork, choose, make

__all__ = ["NAMES", "Choice", "Engine", "Network", "check_fork", "choose", "make"]
