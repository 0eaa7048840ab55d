"""Prompt sets: the emoji captions, users' files, and what is wrong with broken ones."""

from __future__ import annotations

import json

import pytest

from cad_fast.evaluation import LabelledPrompt, PromptSet
from cad_fast.zoo.concepts import OBJECTS, STYLES
from cad_fast.zoo.prompt_set import emoji_prompts


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_emoji_prompts_cover_objects_and_styles():
    prompts = emoji_prompts()
    assert len(prompts) == len(OBJECTS) * len(STYLES)
    assert prompts.axes == ("object", "style")
    assert prompts.concepts("object") == OBJECTS and prompts.concepts("style") == STYLES
    assert [entry.prompt for entry in prompts.of("object", "cat")] == [f"a cat in {style} style" for style in STYLES]


def test_a_file_of_concepts_has_one_axis(tmp_path):
    path = write(tmp_path / "p.json", {"concepts": {"cat": ["a cat", "photo of a cat"], "dog": ["a dog"]}})
    prompts = PromptSet.from_json(path)
    assert prompts.axes == ("concept",)
    assert prompts.concepts("concept") == ("cat", "dog")
    assert prompts[1] == LabelledPrompt("photo of a cat", {"concept": "cat"})


def test_a_file_of_labelled_prompts_has_any_axes(tmp_path):
    entries = [{"prompt": "a red cat", "labels": {"object": "cat", "colour": "red"}}]
    prompts = PromptSet.from_json(write(tmp_path / "p.json", {"prompts": entries}))
    assert list(prompts) == [LabelledPrompt("a red cat", {"object": "cat", "colour": "red"})]


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{", "is not valid JSON"),
        ([], "expected an object"),
        ({}, "has neither"),
        ({"concepts": {}, "prompts": []}, "has concepts and prompts"),
        ({"concepts": {}}, "there are no prompts"),
        ({"concepts": ["cat"]}, "'concepts' is a list"),
        ({"concepts": {"cat": "a cat"}}, "concept 'cat' is 'a cat', expected a list"),
        ({"concepts": {"cat": ["a cat", 3]}}, "prompt 1 of concept 'cat' is 3"),
        ({"concepts": {"cat": [" "]}}, "prompt 0 of concept 'cat' is ' '"),
        ({"prompts": {"a": 1}}, "'prompts' is a dict"),
        ({"prompts": ["a cat"]}, "prompt 0 is 'a cat'"),
        ({"prompts": [{"prompt": "a cat"}]}, "prompt 0 has labels None"),
        ({"prompts": [{"prompt": "a cat", "labels": {}}]}, "has no labels"),
        ({"prompts": [{"prompt": "a cat", "labels": {"object": 1}}]}, "prompt 0 has labels {'object': 1}"),
        (
            {"prompts": [{"prompt": "a", "labels": {"x": "1"}}, {"prompt": "b", "labels": {"y": "1"}}]},
            r"prompt 1 \('b'\) has labels for y, but the first prompt for x",
        ),
    ],
)
def test_broken_files_are_named_with_the_entry(tmp_path, content, reason):
    path = write(tmp_path / "broken.json", content)
    with pytest.raises(ValueError, match=reason) as caught:
        PromptSet.from_json(path)
    assert "broken.json" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        PromptSet.from_json(tmp_path / "nothing.json")


def test_unknown_names_suggest_the_nearest():
    prompts = emoji_prompts()
    with pytest.raises(ValueError, match=r"unknown object 'Flowers'; did you mean 'flower'\?"):
        prompts.of("object", "Flowers")
    with pytest.raises(ValueError, match="unknown axis 'xyz'; known: object, style"):
        prompts.concepts("xyz")
