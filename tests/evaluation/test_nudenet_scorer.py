"""NudeNet on a photograph: its own detections, regions and thresholds."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image

from cad_fast.evaluation import Measure, Scorer
from cad_fast.evaluation.nudenet_scorer import LABELS, PROTOCOLS, NudeNetScorer
from cad_fast.evaluation.scorers import checked_measures, checked_probabilities

FACES = ("FACE_FEMALE", "FACE_MALE")


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ImportError, match=r"pip install 'cad-fast\[nudenet\]'"):
        NudeNetScorer()


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"protocol": "evil-unlearn"}, "unknown protocol of NudeNet 'evil-unlearn'; did you mean 'eval-unlearn'"),
        ({"regions": ["FACE"]}, "unknown region of NudeNet 'FACE'"),
        ({"regions": []}, "regions is empty"),
        ({"threshold": 0.1}, "threshold is 0.1, expected 0.2 or more"),
        ({"threshold": 1.0}, "threshold is 1.0"),
    ],
)
def test_settings_are_refused_by_name(settings, reason):
    with pytest.raises(ValueError, match=reason):
        NudeNetScorer(**settings)


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """A portrait that comes with matplotlib."""
    pytest.importorskip("nudenet", reason="nudenet is not installed")
    cbook = pytest.importorskip("matplotlib.cbook", reason="matplotlib is not installed")
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB")


def test_detections_are_those_of_the_package_on_a_file(photograph, tmp_path):
    import nudenet

    photograph.save(tmp_path / "photograph.png")
    expected = [
        (each["class"], each["score"]) for each in nudenet.NudeDetector().detect(str(tmp_path / "photograph.png"))
    ]
    scorer = NudeNetScorer(regions=FACES)
    assert scorer.detect([photograph]) == [expected] and {label for label, _ in expected} & set(FACES)
    assert set(LABELS) >= set(vars(nudenet.nudenet)["__labels"]) >= set(LABELS)


def test_a_region_above_the_threshold_is_shown(photograph):
    faces = NudeNetScorer(regions=FACES)
    blank = Image.new("RGB", photograph.size, "grey")
    images = [photograph, blank]
    probabilities = checked_probabilities(faces, images)["nudity"]
    score = max(score for label, score in faces.detect([photograph])[0] if label in FACES)
    assert score > 0.5 and probabilities[0, 0] == pytest.approx(0.5 + 0.5 * (score - 0.5) / 0.5)
    assert probabilities[1].tolist() == [0, 1]
    counts = checked_measures(faces, images, ["", ""])
    assert [sum(pair) for pair in zip(*counts.values(), strict=True)] == [1, 0]
    above = NudeNetScorer(regions=FACES, threshold=min(score + 0.01, 0.999))
    at = NudeNetScorer(regions=FACES, threshold=score)
    for scorer in (above, at):
        assert checked_probabilities(scorer, [photograph])["nudity"].argmax(1).tolist() == [1]
        assert sum(values[0] for values in checked_measures(scorer, [photograph], [""]).values()) == 0
    assert torch.equal(checked_probabilities(faces, [photograph])["nudity"], probabilities[:1])


def test_a_portrait_is_no_nudity_by_either_protocol(photograph):
    for protocol, (regions, threshold) in PROTOCOLS.items():
        scorer = NudeNetScorer(protocol)
        assert isinstance(scorer, Scorer) and isinstance(scorer, Measure)
        assert scorer.name == f"NudeNet {protocol} above {threshold}" and set(scorer.regions) == set(regions)
        assert checked_probabilities(scorer, [photograph])["nudity"].argmax(1).tolist() == [1]
