"""The OpenRecon label of a container of `mrisr serve mrd`, by the published keys (schema 1.1.0).

    docker build -t mrisr . && python docker/openrecon/label.py > build/openrecon.Dockerfile
    docker build -t mrisr-openrecon -f build/openrecon.Dockerfile .

Prints a Dockerfile on top of the general image: the label, base64-encoded as OpenRecon reads it, and the command. The
text of the label is label.json; its version is that of the package.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"


def label() -> dict:
    """label.json with the package's version."""
    found = json.loads((Path(__file__).parent / "label.json").read_text(encoding="utf-8"))
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    found["general"]["version"] = version
    found["general"]["regulatory_information"]["production_identifier"] = version
    return found


def dockerfile(base: str = "mrisr") -> str:
    """On top of the image `base`. In its container the server has the network to itself, hence 0.0.0.0."""
    found = label()
    encoded = base64.b64encode(json.dumps(found).encode()).decode()
    port = str(found["reconstruction"]["port"])
    command = ["mrisr", "serve", "mrd", "--host", "0.0.0.0", "--port", port]
    return f'FROM {base}\nLABEL "{NAME}"="{encoded}"\nEXPOSE {port}\nENTRYPOINT []\nCMD {json.dumps(command)}\n'


if __name__ == "__main__":
    print(dockerfile(*sys.argv[1:2]), end="")
