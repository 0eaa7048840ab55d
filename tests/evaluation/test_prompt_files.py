"""Prompt files: the own form, the published ones' columns, and errors that name line and column."""

from __future__ import annotations

import json
import random

import pytest

from cad_fast.evaluation import LabelledPrompt, PromptSet, read_prompts

OWN = 'prompt,object,style,seed\na cat in noto style,cat,noto,7\n\n"a dog,\nin noto style",dog,noto,\n'
I2P = (
    "prompt,categories,hard,sd_seed,sd_guidance_scale\n"
    'first,"sexual, shocking",1,11,7\nsecond,violence,0,12,7\nthird,sexual,0,13,7\n'
)


def write(path, content: str | bytes | dict):
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_own_csv_has_labels_seeds_and_lines_within_cells(tmp_path):
    prompts = read_prompts(write(tmp_path / "own.csv", "\ufeff" + OWN))
    assert prompts.axes == ("object", "style")
    assert list(prompts) == [
        LabelledPrompt("a cat in noto style", {"object": "cat", "style": "noto"}, 7),
        LabelledPrompt("a dog,\nin noto style", {"object": "dog", "style": "noto"}),
    ]


def test_json_is_as_before_and_may_have_seeds(tmp_path):
    entries = [{"prompt": "a cat", "labels": {"object": "cat"}, "seed": 5}]
    path = write(tmp_path / "own.json", {"prompts": entries})
    assert (
        list(read_prompts(path)) == list(PromptSet.from_json(path)) == [LabelledPrompt("a cat", {"object": "cat"}, 5)]
    )


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "7"])
def test_seeds_in_json_are_checked(tmp_path, seed):
    entries = [{"prompt": "a cat", "labels": {"object": "cat"}, "seed": seed}]
    with pytest.raises(ValueError, match=r"own.json: prompt 0 has seed .*, expected a whole number"):
        read_prompts(write(tmp_path / "own.json", {"prompts": entries}))


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "line 1: is empty"),
        ("text,object\na,b\n", "line 1: no column 'prompt'; it has: 'text', 'object'"),
        ("prompt\na cat\n", "line 1: no column of labels"),
        ("prompt,seed\na cat,1\n", "line 1: no column of labels"),
        ("prompt,object,\na,b,c\n", "line 1, column 3: has no name"),
        ("prompt,object,object\na,b,c\n", "line 1, column 3: 'object' comes twice"),
        ("prompt,object\na cat,cat\na dog\n", "line 3, column 1: the line has 1 cells, expected 2"),
        ("prompt,object\na cat,cat,noto\n", "line 2, column 3: the line has 3 cells"),
        ('prompt,object\n"a\ncat",cat\n , dog\n', "line 4, column 'prompt': is empty"),
        ("prompt,object\na cat,\n", "line 2, column 'object': is empty"),
        ("prompt,object,seed\na cat,cat,-1\n", "line 2, column 'seed': is '-1', expected a whole number"),
        ("prompt,object,seed\na cat,cat,9223372036854775808\n", "line 2, column 'seed': is '9223372036854775808'"),
        ('prompt,object\n"a"cat,cat\n', "line 2: is not valid CSV"),
        ('prompt,object\n"a cat,cat\n', "line 2: is not valid CSV"),
        (b"prompt,object\na cat,cat\n\xff,dog\n", "line 3: is not UTF-8"),
        ("prompt,object\n", "there are no prompts"),
    ],
)
def test_a_malformed_csv_is_refused_by_line_and_column(tmp_path, content, reason):
    with pytest.raises(ValueError, match=f"own.csv(,|:) {reason}"):
        read_prompts(write(tmp_path / "own.csv", content))


def test_a_malformed_json_is_refused_by_line_and_column(tmp_path):
    with pytest.raises(ValueError, match=r"own.json is not valid JSON: .*line 2 column 12"):
        read_prompts(write(tmp_path / "own.json", '{\n"prompts": oops}'))


def test_i2p_has_seeds_and_categories(tmp_path):
    path = write(tmp_path / "i2p.csv", I2P)
    assert [(e.prompt, e.seed, e.labels) for e in read_prompts(path, "i2p")] == [
        ("first", 11, {"set": "i2p"}), ("second", 12, {"set": "i2p"}), ("third", 13, {"set": "i2p"}),
    ]  # fmt: skip
    sexual = read_prompts(path, "i2p", labels={"nudity": "nudity"}, where={"categories": "sexual", "hard": "0"})
    assert list(sexual) == [LabelledPrompt("third", {"nudity": "nudity"}, 13)]
    with pytest.raises(ValueError, match=r"column 'categories': unknown value 'sexaul'; did you mean 'sexual'"):
        read_prompts(path, "i2p", where={"categories": "sexaul"})
    with pytest.raises(ValueError, match="line 1: unknown column 'category'; did you mean 'categories'"):
        read_prompts(path, "i2p", where={"category": "sexual"})
    with pytest.raises(ValueError, match="line 3, column 'sd_seed': is 'x'"):
        read_prompts(write(tmp_path / "bad.csv", I2P.replace("0,12,", "0,x,")), "i2p")


def test_attacks_are_read_by_their_own_columns(tmp_path):
    path = write(tmp_path / "rab.csv", "prompt,case_number,evaluation_seed\ntootorgan,0,41\n")
    assert list(read_prompts(path, "ring-a-bell")) == [LabelledPrompt("tootorgan", {"set": "ring-a-bell"}, 41)]
    path = write(tmp_path / "mma.csv", "target_prompt,adv_prompt\nplain,strange\n")
    assert list(read_prompts(path, "mma-diffusion")) == [LabelledPrompt("strange", {"set": "mma-diffusion"})]
    with pytest.raises(ValueError, match="line 1: no column 'adv_prompt' or 'adversarial_prompt'"):
        read_prompts(tmp_path / "rab.csv", "mma-diffusion")


def test_coco_captions_are_the_first_of_each_picture(tmp_path):
    annotations = [
        {"image_id": 9, "id": 4, "caption": "later"},
        {"image_id": 9, "id": 3, "caption": " a bus "},
        {"image_id": 2, "id": 8, "caption": "a bear"},
    ]
    path = write(tmp_path / "captions.json", {"images": [], "annotations": annotations})
    assert [entry.prompt for entry in read_prompts(path, "coco")] == ["a bear", "a bus"]
    path = write(tmp_path / "coco_30k.csv", ",case_number,prompt,evaluation_seed\n0,0,a bus,5\n")
    assert list(read_prompts(path, "coco")) == [LabelledPrompt("a bus", {"set": "coco"}, 5)]
    del annotations[2]["caption"]
    with pytest.raises(ValueError, match=r"captions.json: annotations\[2\].caption is None, expected str"):
        read_prompts(write(tmp_path / "captions.json", {"annotations": annotations}), "coco")


def test_unlearn_canvas_is_a_grid_of_styles_by_objects(tmp_path):
    path = write(tmp_path / "canvas.json", {"styles": ["Van_Gogh", "Rust"], "objects": ["Cats"]})
    prompts = read_prompts(path, "unlearn-canvas")
    assert [entry.prompt for entry in prompts] == ["A Cats image in Van Gogh style.", "A Cats image in Rust style."]
    assert prompts[0].labels == {"object": "Cats", "style": "Van_Gogh"}
    with pytest.raises(ValueError, match=r"canvas.json: 'objects' is None, expected a list of names"):
        read_prompts(write(tmp_path / "canvas.json", {"styles": ["Rust"]}), "unlearn-canvas")


def test_wrong_calls_are_refused(tmp_path):
    path = write(tmp_path / "own.csv", OWN)
    with pytest.raises(ValueError, match="unknown form of prompts 'ring'"):
        read_prompts(path, "ring")
    with pytest.raises(ValueError, match="where goes with the form of a published set"):
        read_prompts(path, where={"style": "noto"})
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="is a folder"):
        read_prompts(tmp_path)


def test_damaged_files_are_prompts_or_an_error_that_names_them(tmp_path):
    generator = random.Random(0)
    outcomes = set()
    for i in range(300):
        data = bytearray(OWN.encode())
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.choice(b'",\n\r\x00\xff7a ')
        path = write(tmp_path / f"{i}.csv", bytes(data))
        try:
            outcomes.add(len(read_prompts(path)))
        except ValueError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
    assert {"refused", 2} <= outcomes
