"""Cases, rows and the run over files: repeatable, on the right voxels, honest about what was left out."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from mrisr.errors import InputError, ModelError, MrisrError, MrisrWarning, UsageError
from mrisr.evaluate import report as reports
from mrisr.evaluate.cases import CASES, make_trial, subject_of
from mrisr.evaluate.methods import Network, build_methods, describe_models, pick_cases
from mrisr.evaluate.protocol import evaluate_trial, find_volumes, load_subjects, run_protocol
from mrisr.grid import Grid, plan

BASELINES = ["trilinear", "cubic", "quintic", "zerofill"]


def by_method(rows):
    return {row.method: row for row in rows}


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_case_is_repeatable_and_comes_back_to_the_reference_grid(head, name):
    first, again, other = (make_trial(head, CASES[name], seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.scan, again.scan)
    assert np.array_equal(first.scan, other.scan) == (not CASES[name].noise and not CASES[name].bias)
    assert first.reference.shape == first.mask.shape == first.fine.shape
    back = plan(first.coarse, voxel_size=first.fine.voxel_size)
    assert back.shape == first.fine.shape
    np.testing.assert_allclose(back.affine, first.fine.affine, atol=1e-6)
    for n, m, factor in zip(first.fine.shape, first.coarse.shape, CASES[name].factor, strict=True):
        assert m == pytest.approx(n / factor, abs=0.5)


def test_the_noise_is_the_stated_fraction(head):
    clean, noisy = make_trial(head, CASES["iso2"]), make_trial(head, CASES["iso2n"])
    bright = clean.scan > 10 * noisy.sigma
    assert noisy.sigma == pytest.approx(0.02 * np.median(clean.reference[clean.mask]), rel=1e-3)
    assert np.std((noisy.scan - clean.scan)[bright]) == pytest.approx(noisy.sigma, rel=0.05)


def test_a_crop_keeps_its_place_in_space(head):
    crop = subject_of("crop", head.data, head.grid, crop=24)
    assert crop.grid.shape == (24, 24, 24)
    corner = np.linalg.inv(head.grid.affine) @ crop.grid.affine @ [0, 0, 0, 1]
    i, j, k = np.round(corner[:3]).astype(int)
    np.testing.assert_array_equal(crop.data, head.data[i : i + 24, j : j + 24, k : k + 24])


def test_known_orderings_of_the_baselines(head):
    methods = build_methods(BASELINES)
    for case in ("iso2", "iso2n", "iso1p5"):
        rows = by_method(evaluate_trial(make_trial(head, CASES[case]), methods))
        assert rows["zerofill"].psnr > rows["cubic"].psnr > rows["trilinear"].psnr, case
        assert rows["zerofill"].ssim > rows["trilinear"].ssim, case
        assert rows["zerofill"].hfen < rows["trilinear"].hfen, case
        assert rows["quintic"].gain > 0 and rows["cubic"].gain == 0, case
    assert rows["cubic"].chi2 is None


def test_chi2_knows_noise_copied_from_noise_removed(head):
    """Zero-filling gives the noisy scan back exactly (0); the reference itself leaves the noise (1)."""
    methods = build_methods(["zerofill"]) | {"truth": lambda trial: trial.reference}
    rows = by_method(evaluate_trial(make_trial(head, CASES["iso2n"]), methods))
    assert rows["zerofill"].chi2 < 1e-6
    assert rows["truth"].chi2 == pytest.approx(1, abs=0.1)


def test_a_brighter_output_shows_as_a_shift(head):
    methods = build_methods(["cubic"]) | {"bright": lambda trial: 1.05 * trial.reference}
    row = by_method(evaluate_trial(make_trial(head, CASES["iso2"]), methods))["bright"]
    assert row.intensity_shift == pytest.approx(0.05, abs=1e-4)
    assert row.tissue_change > 0.01


def test_run_over_a_folder_names_and_counts_what_it_skipped(scans):
    (scans / "broken.nii.gz").write_bytes(b"not a scan")
    (scans / "notes.txt").write_text("not a volume at all")
    with pytest.warns(MrisrWarning, match="skipped broken.nii.gz"):
        outcome = run_protocol(find_volumes([scans]), pick_cases(["iso2", "thick4"]), build_methods(["zerofill"]))
    assert outcome.volumes == ["one", "two"]
    assert [s["file"] for s in outcome.skipped] == ["broken.nii.gz"]
    assert len(outcome.rows) == 2 * 2 * 2
    text = reports.render_markdown(reports.build_report(outcome, {"seed": 0}))
    assert "**1 skipped**" in text and "broken.nii.gz" in text


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "broken.nii").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MrisrWarning)
        with pytest.raises(InputError, match="not one volume"):
            run_protocol([tmp_path / "broken.nii"], pick_cases(["iso2"]), build_methods(["cubic"]))
    with pytest.raises(InputError, match="no such file"):
        find_volumes([tmp_path / "missing.nii"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no volume in this folder"):
        find_volumes([tmp_path / "empty"])


def test_a_case_too_coarse_for_a_volume_is_skipped_alone(scans):
    import nibabel as nib

    flat = np.asarray(nib.load(scans / "two.nii").dataobj)[:, :, 15:31]
    nib.save(nib.Nifti1Image(flat, np.eye(4)), scans / "flat.nii")
    with pytest.warns(MrisrWarning, match="case: thick4"):
        outcome = run_protocol([scans / "flat.nii"], pick_cases(["iso2", "thick4"]), build_methods(["cubic"]))
    assert {row.case for row in outcome.rows} == {"iso2"}


def test_networks_go_under_labels_of_their_own():
    asked = ["a=mrisr@ensemble8", "mrisr@sample4@stated", "b=base", "mrisr"]
    methods = build_methods(asked, model="base", threads=1)
    assert list(methods) == ["cubic", "a", "mrisr@sample4@stated", "b", "mrisr"]
    a, sample, b = (methods[name] for name in ("a", "mrisr@sample4@stated", "b"))
    assert (a.mode, a.ensemble, a.steps, a.stated, a.threads) == ("mean", 8, 1, False, 1)
    assert (sample.mode, sample.ensemble, sample.steps, sample.stated) == ("sample", 1, 4, True)
    assert (b.mode, b.ensemble, b.model) == ("mean", 1, "base")
    assert all(text.startswith("base.safetensors (sha256 ") for text in describe_models(methods).values())
    assert list(describe_models(methods)) == list(methods)[1:]


@pytest.mark.parametrize(
    "name,words",
    [
        ("a=mrisr@ensemble3", "ensemble of 1, 2, 4, 8"),
        ("mrisr@sample0", "N >= 1 steps"),
        ("mrisr@sample2@ensemble8", "for the mean"),
        ("mrisr@blur", "after @ expected sampleN"),
        ("mrisr@stated4", "after @ expected sampleN"),
        ("=base", "not known"),
    ],
)
def test_what_cannot_be_asked_of_a_network_is_refused(name, words):
    with pytest.raises(UsageError, match=words):
        build_methods([name])


def test_two_methods_of_one_label_are_refused():
    with pytest.raises(UsageError, match="the same label"):
        build_methods(["a=mrisr", "a=mrisr@ensemble2"])
    with pytest.raises(ModelError, match="neither shipped"):
        build_methods(["a=nowhere.safetensors"])


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(UsageError, match="iso2, iso2n"):
        pick_cases(["iso3"])
    with pytest.raises(UsageError, match="zerofill"):
        build_methods(["bicubic"])
    with pytest.raises(UsageError, match="--train-on"):
        build_methods(["linear"])
    with pytest.raises(ModelError, match="nowhere"):
        build_methods(["net:nowhere.safetensors"])


def test_linear_refuses_to_be_judged_on_its_training_person(head):
    methods = build_methods(["linear"], training=[head])
    with pytest.raises(UsageError, match="split by person"):
        evaluate_trial(make_trial(head, CASES["iso2"]), methods)


def test_networks_get_the_scan_only_and_must_answer_on_the_reference_grid(head, monkeypatch):
    import mrisr
    from mrisr.volume import Volume

    seen = {}

    def upscale(scan, *, voxel_size, psf, **others):
        seen.update(scan=scan, psf=psf, **others)
        grid = plan(scan.grid, voxel_size=voxel_size)
        affine = grid.affine.copy()
        affine[0, 3] += seen.get("push", 0)
        return scan.replace(np.ones(grid.shape, np.float32), affine)

    monkeypatch.setitem(vars(mrisr), "upscale", upscale)
    trial = make_trial(head, CASES["iso1p5"])
    out = Network(model=object())(trial)
    assert out.shape == trial.fine.shape and isinstance(seen["scan"], Volume)
    assert seen["psf"] == "auto" and seen["mode"] == "mean"
    np.testing.assert_array_equal(seen["scan"].data, trial.scan)
    Network(model=object(), stated=True)(trial)
    assert seen["psf"] == trial.psf
    seen["push"] = 0.2
    with pytest.raises(MrisrError, match="another grid"):
        Network(model=object())(trial)


def test_untrained_weights_are_plain_interpolation(head, tmp_path, monkeypatch):
    """Through mrisr.upscale, but for the fade to cubic in air: untrained, a network adds nothing to zero-filling."""
    from mrisr.nn.presets import build
    from mrisr.train.checkpoint import export_weights

    monkeypatch.setattr("mrisr.infer.run.fade", lambda image, *rest: image)
    path = tmp_path / "tiny.safetensors"
    meta = {"format": 1, "preset": "tiny", "sigma_data": 0.1}
    export_weights(path, build("tiny").state_dict(), meta)
    methods = build_methods(["zerofill", f"net:{path}"], device="cpu", engine="torch")
    rows = by_method(evaluate_trial(make_trial(head, CASES["iso2"]), methods))
    assert rows[f"net:{path}"].psnr == pytest.approx(rows["zerofill"].psnr, abs=1e-3)


def test_four_dimensional_files_give_one_subject_per_frame(tmp_path, head):
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.stack([head.data, 2 * head.data], -1), np.eye(4)), tmp_path / "two.frames.nii.gz")
    assert [s.name for s in load_subjects(tmp_path / "two.frames.nii.gz")] == [
        "two.frames[0]",
        "two.frames[1]",
    ]


def test_show_gets_every_image(head):
    shown = []
    trial = make_trial(head, CASES["iso2"])
    evaluate_trial(trial, build_methods(["zerofill"]), show=lambda *seen: shown.append(seen))
    assert [list(images) for _, images, _ in shown] == [["cubic", "zerofill"]]


def test_anisotropic_oblique_grids_work_in_every_case(head):
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * [0.9, 0.86, 0.7]
    tilted = subject_of("tilted", head.data[:, 1:46, :], Grid((48, 45, 48), affine))
    for case in CASES.values():
        rows = evaluate_trial(make_trial(tilted, case), build_methods(["zerofill"]))
        assert all(np.isfinite([row.psnr, row.ssim, row.hfen]).all() for row in rows)


def test_report_files_and_their_safety_against_overwriting(scans, tmp_path):
    outcome = run_protocol([scans / "two.nii"], pick_cases(["iso2"]), build_methods(["zerofill"]))
    folder = reports.check_folder(tmp_path / "out" / "deep", False)
    report = reports.build_report(outcome, {"seed": 0, "cases": ["iso2"]})
    reports.write_report(report, folder)
    stored = json.loads((folder / reports.JSON_NAME).read_text())
    assert stored["format"] == reports.FORMAT and len(stored["rows"]) == 2
    assert len(stored["rows"][0]["fsc_curve"]) == 40
    assert {"date", "commit", "machine", "versions", "summary", "skipped"} <= set(stored)
    assert reports.render_markdown(stored) == (folder / reports.MARKDOWN_NAME).read_text()
    with pytest.raises(MrisrError, match="exists already"):
        reports.check_folder(folder, False)
    assert sorted(p.name for p in folder.iterdir()) == [reports.JSON_NAME, reports.MARKDOWN_NAME]


def test_summary_counts_every_case_once():
    row = {key: 0.0 for key in reports._AVERAGED} | {"method": "m", "chi2": None}
    rows = [row | {"volume": v, "case": "a", "gain": 1.0} for v in "xyz"]
    rows += [row | {"volume": "x", "case": "b", "gain": -1.0}]
    (entry,) = reports.summarise(rows)
    assert entry["mean"]["gain"] == 0.0 and entry["mean"]["chi2"] is None
    assert entry["worst"] == {"volume": "x", "case": "b", "gain": -1.0}
