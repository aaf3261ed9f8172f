"""The oracle's scores of a region, and the estimates of the table."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from ldm.data.bench.cocoee import COCOImageDataset, result_path
from ldm.evaluation.benchmark import evaluate
from ldm.evaluation.fid import Statistics, frechet_distance
from ldm.evaluation.scorers import Case
from ldm.miniworld.crops import bench_labels, labels_of
from ldm.miniworld.oracle import colour_error
from ldm.miniworld.patterns import PATTERNS
from ldm.miniworld.scores import METRICS, IdentityScorer, identity_scores, load_oracle
from ldm.miniworld.shapes import SHAPES
from ldm.miniworld.table import (
    COLUMNS,
    Estimate,
    Row,
    interval_around,
    read_rows,
    resampled_fids,
    write_pasted,
    write_reconstructed,
    write_rows,
    write_unedited,
)
from ldm.util import UserError
from tests.conftest import ROOT


def test_colour_error():
    red, blue, grey = torch.eye(3)
    wanted = torch.stack([red, blue])[None]
    assert colour_error(wanted.flip(1), wanted) == 0
    torch.testing.assert_close(colour_error(torch.stack([red, grey])[None], wanted), torch.tensor([50 * 2**0.5]))


def test_identity_scores():
    thing = {"shape": "star", "pattern": "dots", "colour": (1, 0, 0), "second": (1, 1, 1)}
    wanted = labels_of(thing)
    right = torch.cat([
        F.one_hot(torch.tensor(SHAPES.index("star")), 12).float(),
        F.one_hot(torch.tensor(PATTERNS.index("dots")), 6).float(),
        torch.from_numpy(wanted.colours).flatten(),
    ])  # fmt: skip
    wrong = right.roll(1)
    scores = identity_scores(torch.stack([right, wrong]), [wanted, wanted])
    assert scores["shape"].tolist() == [1, 0] and scores["pattern"].tolist() == [1, 0]
    assert scores["colour_error"][0] == 0 and scores["colour_error"][1] > 10


def test_the_interval_of_a_fid():
    """It is about as wide as the spread of FIDs of independent sets."""
    rng = np.random.default_rng(0)
    real = Statistics()
    real.add(rng.normal(size=(4000, 8)))
    values = []
    for _ in range(60):
        drawn = rng.normal(0.3, 1.0, (300, 8))
        own = Statistics()
        own.add(drawn)
        values.append(frechet_distance(own.mean, own.covariance, real.mean, real.covariance))
    low, high = interval_around(values[-1], resampled_fids(drawn, real))
    assert low < values[-1] < high
    assert 0.6 < (high - low) / (np.quantile(values, 0.975) - np.quantile(values, 0.025)) < 1.6


def test_rows_to_compare_with(world, tmp_path):
    bench = COCOImageDataset(str(world / "bench"))
    write_unedited(bench, tmp_path / "unedited")
    write_pasted(bench, tmp_path / "pasted")
    for i, name in enumerate(bench.ids):
        photo, mask, reference = (np.asarray(picture) for picture in bench.pictures(i))
        assert np.array_equal(np.asarray(Image.open(result_path(tmp_path / "unedited", name))), photo)
        pasted = np.asarray(Image.open(result_path(tmp_path / "pasted", name)))
        assert np.array_equal(pasted[mask < 128], photo[mask < 128])
        assert abs(pasted[mask >= 128].mean() - reference.mean()) < 6


def test_a_perfect_edit_changes_the_object_alone(world):
    """The oracle sees the reference's object in it; beyond the object and its shadow the pixels are the photo's."""
    bench = COCOImageDataset(str(world / "bench"))
    scorer = IdentityScorer(load_oracle(ROOT / "pretrained_models/mini_oracle.safetensors"), bench_labels(bench.root))
    right = {"perfect": 0, "GT_3500": 0}
    for i, name in enumerate(bench.ids):
        photo, mask, reference = bench.pictures(i)
        perfect = Image.open(result_path(world / "bench/perfect", name))
        equal = (np.asarray(perfect) == np.asarray(photo)).all(axis=2)
        inside, far = np.asarray(mask) >= 128, np.asarray(mask.filter(ImageFilter.MaxFilter(51))) < 128
        assert equal[inside].mean() < 0.6 and (~equal[far]).sum() <= 0.05 * far.sum()
        for folder, result in (("perfect", perfect), ("GT_3500", photo)):
            answers = scorer.extractor([scorer.extractor.prepare(Case(i, name, photo, mask, reference, result).region)])
            right[folder] += int(answers[0, 12:18].argmax() == bench_labels(bench.root)[name].pattern)
    assert right["perfect"] >= 5 > 3 >= right["GT_3500"]


def test_pictures_through_the_autoencoder(world, tmp_path):
    class Model:
        device = torch.device("cpu")
        first_stage_model = SimpleNamespace(reconstruct=torch.neg)

    bench = COCOImageDataset(str(world / "bench"))
    write_reconstructed(Model(), bench, world / "bench/perfect", tmp_path / "out")
    for name in bench.ids:
        pixels, result = (
            np.asarray(Image.open(result_path(folder, name))) for folder in (world / "bench/perfect", tmp_path / "out")
        )
        assert np.array_equal(result, 255 - pixels)


def test_the_scorer_joins_an_evaluation(world, tmp_path):
    """It scores what the oracle sees in the region; cases without labels and empty masks have no score."""
    bench = COCOImageDataset(str(world / "bench"))
    write_pasted(bench, tmp_path / "pasted")
    oracle = load_oracle(ROOT / "pretrained_models/mini_oracle.safetensors")
    labels = bench_labels(bench.root)
    summary = evaluate(tmp_path / "pasted", bench, METRICS, [IdentityScorer(oracle, labels)])
    assert [score.metric.key for score in summary.scores] == ["shape", "pattern", "colour_error"]
    assert summary.weights == {"oracle": oracle.record()} and len(oracle.record()["sha256"]) == 64
    for i, case in enumerate(summary.per_case):
        photo, mask, reference = bench.pictures(i)
        rows, columns = (np.flatnonzero((np.asarray(mask) >= 128).any(axis)) for axis in (1, 0))
        region = Image.open(result_path(tmp_path / "pasted", case.id)).crop(
            (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        )
        answers = oracle([oracle.prepare(region)])
        assert case.values["shape"] == (answers[0, :12].argmax() == labels[case.id].shape)
        assert case.values["pattern"] == (answers[0, 12:18].argmax() == labels[case.id].pattern)
        assert 0 <= case.values["colour_error"] < 100
    photo, mask, reference = bench.pictures(0)
    case = Case(0, bench.ids[0], photo, mask, reference, photo)
    scorer = IdentityScorer(oracle, labels)
    assert scorer.prepare(case) is not None
    assert scorer.prepare(replace(case, id="another")) is None
    assert scorer.prepare(replace(case, mask=Image.new("L", photo.size))) is None


def test_rows_are_written_and_read(tmp_path):
    scores = {key: Estimate(i + 0.5, float(i), i + 1.0) for i, key in enumerate(COLUMNS)}
    plain = Row(scores, tmp_path / "edits/results")
    compared = Row(scores, tmp_path / "edits/results", (24, 6), {"scale": 5.0}, {"shape": Estimate(0.1, -0.1, 0.2)})
    write_rows(tmp_path / "out/rows.json", {"a": plain, "b": compared})
    read = read_rows(tmp_path / "out/rows.json")
    assert read["a"].results.resolve() == plain.results
    assert replace(read["a"], results=plain.results) == plain
    assert replace(read["b"], results=plain.results) == compared
    for content in ("", "[]", '{"a": 1}', '{"a": {"results": "x"}}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(UserError, match=r"other\.json does not hold rows of the table"):
            read_rows(tmp_path / "other.json")
