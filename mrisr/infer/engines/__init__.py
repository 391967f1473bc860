"""What runs the network: one small protocol, one file per engine.

No name of a library is bound here: this package has submodules called torch and openvino.
"""

from mrisr.infer.engines.select import NAMES, Engine, Network, check_fork, choose

__all__ = ["NAMES", "Engine", "Network", "check_fork", "choose"]
