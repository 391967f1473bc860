"""However a step is divided, among processes or into pieces, the losses are the same."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mrisr.data.patches import PatchSampler
from mrisr.data.synth import synthetic_volume
from mrisr.errors import TrainingError
from mrisr.train import loop
from mrisr.train.batches import Draws, pieces, places, share_of
from mrisr.train.config import CONFIGS, DISTILLATIONS, TrainConfig

pytestmark = pytest.mark.usefixtures("few_probes")


def quiet(text):
    pass


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_ranks_together_hold_the_batch_of_one():
    volume = synthetic_volume((56, 56, 56), seed=3)
    alone = PatchSampler([volume], seed=1)
    apart = [PatchSampler([volume], seed=1) for _ in range(2)]
    for step in range(2):
        whole = alone.batch(step, 4, 16)
        parts = [s.batch(step, 2, 16, rank=rank, ranks=2) for rank, s in enumerate(apart)]
        stand = [p for rank in range(2) for p in places(2, rank, 2)]
        assert sorted(stand) == list(places(4, 0, 1))
        together = torch.cat([p.y for p in parts])
        assert all(torch.equal(together[i], whole.y[place]) for i, place in enumerate(stand))
        noise = Draws(0, step, tuple(stand)).normal(together)
        assert torch.equal(noise, Draws(0, step, places(4, 0, 1)).normal(whole.y)[stand])


def test_pieces_cover_a_batch_once():
    batch = PatchSampler([synthetic_volume((56, 56, 56), seed=3)], seed=1, gradnl=1.0).batch(0, 4, 16)
    parts = list(pieces(batch, Draws(0, 0, (0, 1, 2, 3)), 2))
    assert torch.equal(torch.cat([p.target for p, _ in parts]), batch.target)
    assert torch.equal(torch.cat([p.cond.guidance for p, _ in parts]), batch.cond.guidance)
    assert [d.places for _, d in parts] == [(0, 1), (2, 3)] and [len(p.kinds) for p, _ in parts] == [2, 2]


def test_batches_that_cannot_be_divided_are_refused():
    assert share_of(8, 1, 1) == 8 and share_of(8, 2, 2) == 4 and share_of(3, 1, 1) == 3
    for count, ranks, parts in ((3, 1, 2), (6, 2, 2), (2, 2, 1)):
        with pytest.raises(TrainingError, match="cannot be divided evenly"):
            share_of(count, ranks, parts)


def test_accumulated_gradients_are_those_of_the_whole_batch(scans, tmp_path):
    """And pairs made ahead in a thread are those made when they are wanted, at the change of patches too."""
    config = replace(CONFIGS["tiny"], data=(str(scans),), synthetic=0, steps=4, batch=4, patch=16, validate_every=1,
                     mean_fraction=0.5)  # fmt: skip
    loop.train(config, tmp_path / "whole", quiet)
    loop.train(replace(config, accumulate=2), tmp_path / "pieces", quiet)
    late = replace(config, late_patch=24, late_from=0.5)
    loop.train(late, tmp_path / "late", quiet)
    loop.train(replace(late, prefetch=True), tmp_path / "ahead", quiet)
    assert losses(tmp_path / "ahead") == losses(tmp_path / "late") != losses(tmp_path / "whole")
    assert losses(tmp_path / "pieces") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def launchers(command):
    """What docs/cluster.md starts on each of two machines, on this one, with `command` in place of the training."""
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^torchrun (?:.*\\\n)*.*$", page, flags=re.MULTILINE)
    words = shlex.split(line.replace("\\\n", " "))[1:]
    cut = words.index("-m")
    assert words[cut : cut + 4] == ["-m", "mrisr.cli.main", "train", "--config"] and words[cut + 4] in CONFIGS
    with socket.create_server(("localhost", 0)) as taken:
        meeting = f"localhost:{taken.getsockname()[1]}"
    options = [meeting if word == "node1:29500" else word for word in words[:cut]]
    assert meeting in options and options[:4] == ["--nnodes", "2", "--nproc-per-node", "1"]
    return [sys.executable, "-m", "torch.distributed.run", *options, *map(str, command)]


@pytest.mark.slow("torchrun and two processes distil; shares, pieces and draws are in `make test`")
def test_two_processes_lose_what_one_does(scans, tmp_path):
    """Distillation, whose batches use now these parameters, now those; started as the page says, by two launchers that
    meet."""
    teacher = tmp_path / "teacher"
    alike = dict(data=(str(scans),), synthetic=0, patch=16)
    loop.train(replace(CONFIGS["tiny"], steps=2, mean_fraction=0.5, **alike), teacher, quiet)
    config = replace(DISTILLATIONS["distill-tiny"], steps=6, batch=4, counts=(4, 2, 1), validate_every=1,
                     teacher=str(teacher), **alike)  # fmt: skip
    loop.train(config, tmp_path / "one", quiet)
    file = tmp_path / "config.json"
    file.write_text(config.to_json())
    script = tmp_path / "two.py"
    script.write_text(
        "import sys\nfrom mrisr.train import teacher\nteacher.PROBES = 12\nfrom mrisr.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    line = launchers([script, "distill", "--config", file, "--out", tmp_path / "two", "--threads", "1"])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_late_patches_are_larger_and_fewer():
    config = TrainConfig(steps=100, batch=8, patch=48, late_patch=64, late_from=0.75)
    assert [config.patch_at(s) for s in (0, 74, 75, 99)] == [(48, 8), (48, 8), (64, 3), (64, 3)]
    assert TrainConfig(batch=8, patch=48, late_patch=96, late_from=0).patch_at(0) == (96, 1)
    assert TrainConfig().patch_at(4599) == (48, 8)
    with pytest.raises(TrainingError, match="late_patch"):
        TrainConfig(late_patch=40)
