"""What a run says of its scans, kept."""

from __future__ import annotations

from mrisr.batch import run


class Told(run.Listener):
    def __init__(self):
        self.lines, self.order = [], []

    def note(self, text):
        self.lines.append(text)

    def ended(self, index, outcome):
        self.order.append(index)
