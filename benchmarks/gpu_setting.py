"""What the driver of gpu_day.py and its parts share; it imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Setting:
    """device: where to work. tiny: sizes of nothing, for a dry run. out: where runs are kept. train: the command of the
    training part; pack: what is trained on where there is none. site: a folder of packages that was carried along."""

    device: str
    tiny: bool = False
    train: str = ""
    pack: str = ""
    out: Path = Path()
    site: str = ""

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def threads(self) -> int | None:
        return 1 if self.tiny else None


def summary(part: str, content: dict) -> str:
    """A few lines for the screen."""
    lines = [f"{part}: {content['status']} in {content.get('seconds', '?')} s"]
    lines += [f"  FAIL {text}"[:400] for text in content.get("failures", ())]
    for key, value in content.items():
        if key in ("ceilings", "tools", "table", "skipped", "built"):
            lines += [f"  {key}: {value}"] if not isinstance(value, list) else [f"  {line}" for line in value]
    return "\n".join(lines)
