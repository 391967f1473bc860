"""Output files: checked before the work, all in place after it, or none."""

from __future__ import annotations

import os

import pytest

from mrisr.cli.outputs import Outputs
from mrisr.errors import OutputError


def test_all_appear_together(tmp_path):
    (tmp_path / "other").mkdir()
    with Outputs({"a": tmp_path / "a.txt", "b": tmp_path / "other" / "b.txt", "c": None}) as outputs:
        outputs.stage("a").write_text("A")
        outputs.stage("b").write_text("B")
        assert not (tmp_path / "a.txt").exists()
        outputs.commit()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
        "a.txt",
        os.path.join("other", "b.txt"),
    ]
    assert (tmp_path / "a.txt").read_text() == "A"


@pytest.mark.parametrize("ending", [RuntimeError, KeyboardInterrupt, None])
def test_nothing_is_left_without_commit(tmp_path, ending):
    def work():
        with Outputs({"a": tmp_path / "a.txt", "b": tmp_path / "b.txt"}) as outputs:
            outputs.stage("a").write_text("A")
            if ending:
                raise ending

    if ending:
        with pytest.raises(ending):
            work()
    else:
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_pair_of_files_moves_as_one(tmp_path):
    with Outputs({"image": tmp_path / "scan.hdr"}) as outputs:
        staged = outputs.stage("image")
        staged.write_text("header")
        staged.with_suffix(".img").write_text("voxels")
        outputs.commit()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scan.hdr", "scan.img"]


def test_refusals_come_before_the_work(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "folder").mkdir()
    cases = {
        "exists already": {"a": tmp_path / "old"},
        "is a directory": {"a": tmp_path / "folder"},
        "there is no directory": {"a": tmp_path / "nowhere" / "a"},
        "no directory": {"a": tmp_path / "old" / "a"},
        "is both a and b": {"a": tmp_path / "new", "b": tmp_path / "folder" / ".." / "new"},
    }
    for words, targets in cases.items():
        with pytest.raises(OutputError, match=words), Outputs(targets):
            pytest.fail("the checks let it through")
    with pytest.raises(OutputError, match="is a file of the input"):
        Outputs({"a": tmp_path / "old"}, force=True, inputs=(tmp_path / "old",)).__enter__()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "old"]


def test_force_replaces_and_a_failed_run_keeps_the_old_file(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(RuntimeError), Outputs({"a": target}, force=True) as outputs:
        outputs.stage("a").write_text("new")
        raise RuntimeError
    assert target.read_text() == "old"
    with Outputs({"a": target}, force=True) as outputs:
        outputs.stage("a").write_text("new")
        outputs.commit()
    assert target.read_text() == "new"


def test_a_file_that_appears_during_the_run_is_not_overwritten(tmp_path):
    with (
        pytest.raises(OutputError, match="appeared during the run"),
        Outputs({"a": tmp_path / "a"}) as outputs,
    ):
        outputs.stage("a").write_text("ours")
        (tmp_path / "a").write_text("theirs")
        outputs.commit()
    assert (tmp_path / "a").read_text() == "theirs"
