"""The command line on the embedded model: results, JSON, exit codes, and errors that say what would be right."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from cad_fast import zoo
from cad_fast.attribution import Scores
from cad_fast.cli import build_parser, main
from cad_fast.diffusion.generation import Generation
from tests.evaluation.tiny_clip import save_clip
from tests.pipelines import stable_diffusion


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Scores of two concepts and an edit, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("cli")
    for concept in ("car", "clock"):
        arguments = ["attribute", "zoo:emoji", "--concept", concept, "--target-modules", "cross-attention-kv"]
        arguments += ["--samples", "2", "--steps", "3", "--quiet", "-o", str(folder / concept)]
        assert main(arguments) == 0
    arguments = ["edit", "make", str(folder / "car"), "--erase", "--ratio", "0.03", "--keep", str(folder / "clock")]
    assert main([*arguments, "--name", "no-car", "-o", str(folder / "edit")]) == 0
    return folder


def test_attribute(workspace, capsys):
    code, out, _ = run(
        capsys, "attribute", "zoo:emoji", "--prompt", "a cat", "--kind", "head", "--samples", 1, "--steps", 2,
        "--quiet", "--json", "-o", workspace / "heads",
    )  # fmt: skip
    result = json.loads(out)
    # Heads have the ablated gradient by default: 2 rows under 20 ablations, 32 rows a pass.
    assert code == 0 and result["cost"]["backward_passes"] == 2 and "head" in result["top"][0][0]
    assert (workspace / "heads" / "scores.safetensors").exists()


@pytest.mark.parametrize(
    "more", [["--base-prompt", "noto style"], ["--objective", "denoising"], ["--timesteps", "0", "500"]]
)
def test_attribute_objectives(tmp_path, capsys, more):
    arguments = ["--samples", 1, "--steps", 3, "--target-modules", "attn2.to_k,attn2.to_v", "--quiet", "-o", tmp_path]
    code, out, err = run(capsys, "attribute", "zoo:emoji", "--concept", "cat", *arguments, *more)
    assert code == 0, err
    assert "backward passes" in out


def test_attribute_on_real_pictures(tmp_path, capsys):
    common = ["--objective", "denoising", "--steps", 2, "--quiet", "-o", tmp_path]
    code, _, err = run(capsys, "attribute", "zoo:emoji", "--concept", "book", "--images", "zoo", *common)
    assert code == 0, err
    code, _, err = run(capsys, "attribute", "zoo:emoji", "--prompt", "a book", "--images", tmp_path / "none", *common)
    assert code == 2 and "none is not a folder" in err


def test_edit_is_made_and_described(workspace, capsys):
    config = json.loads((workspace / "edit" / "edit_config.json").read_text())
    assert config["name"] == "no-car" and config["provenance"]["selection"]["keep"] == ["clock"]
    more = ["--amplify", "--count", 5, "--json", "-o", workspace / "more"]
    code, out, _ = run(capsys, "edit", "make", workspace / "car", *more)
    assert code == 0 and json.loads(out)["n_components"] == 5


def test_scores_are_checked_on_held_out_ablations(tmp_path, capsys):
    code, out, err = run(
        capsys, "attribute", "zoo:emoji", "--concept", "cat", "--kind", "head", "--target-modules", "attention",
        "--method", "exact", "--holdout", 8, "--samples", 1, "--steps", 2, "--quiet", "--json", "-o", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    result = json.loads(out)
    assert result["cost"]["backward_passes"] == 0 and result["trust"][0]["n"] == 8


def test_edit_says_what_it_will_do(workspace, tmp_path, capsys):
    arguments = ["edit", "make", workspace / "car", "--erase", "--ratio", 0.01, "--predict", workspace / "clock"]
    code, out, err = run(capsys, *arguments, "-o", tmp_path)
    assert code == 0, err
    told = [line for line in out.splitlines() if line.endswith("of J")]
    assert [line.split()[0] for line in told] == ["car", "clock"] and told[0].split()[1].startswith("-")
    code, out, _ = run(capsys, *arguments, "--json", "-o", tmp_path)
    assert json.loads(out)["predicted"]["car"]["change"] < 0


def test_estimators_are_compared(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    code, out, err = run(
        capsys, "attribute", "zoo:emoji", "--concept", "cat", "--kind", "head", "--target-modules", "attention",
        "--compare", "--holdout", 20, "--samples", 1, "--steps", 2, "--quiet", "--json", "-o", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    points = json.loads(out)["points"]
    rows = {point["method"]: point["row_evaluations"] for point in points[::-1]}
    assert rows["gradient"] == 4 and rows["ablated gradient"] == 80 and rows["ridge"] == 200
    assert rows["ridge on the residual of the ablated gradient"] == 280
    assert (tmp_path / "compare.png").exists() and json.loads((tmp_path / "compare.json").read_text())["points"]
    assert all(-1 <= point["interval"][0] <= point["r"] <= point["interval"][1] <= 1 for point in points)


def test_attribute_stops_and_says_why(tmp_path, capsys):
    code, out, err = run(
        capsys, "attribute", "zoo:emoji", "--concept", "cat", "--kind", "head", "--method", "ablated_gradient",
        "--partitions", 3, "--stop-after", 0.001, "--samples", 1, "--steps", 2, "--holdout", 8, "--quiet",
        "-o", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert "seconds were spent of 0.001" in out and "reliability" in out and "slope" in out
    code, _, err = run(capsys, "attribute", "zoo:emoji", "--concept", "cat", "--partitions", 2, "-o", tmp_path)
    assert code == 2 and "--partitions goes with --method ablated_gradient" in err


def test_many_concepts_at_once(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    common = ["--kind", "head", "--samples", 1, "--steps", 2, "--quiet", "--json"]
    regression = ["--method", "regression", "--ablations", 40, "--fraction", 0.1, "--draw", "bernoulli", "--holdout", 8]
    arguments = ["attribute", "zoo:emoji", "--concept", "car", "cat", "--concept", "dog", *common, *regression]
    code, out, err = run(capsys, *arguments, "-o", tmp_path / "many")
    assert code == 0, err
    result = json.loads(out)
    assert list(result["concepts"]) == ["car", "cat", "dog"]
    assert {one["cost"]["shared_by_concepts"] for one in result["concepts"].values()} == {3}
    assert all(len(one["trust"]) == 3 for one in result["concepts"].values())
    alone = ["attribute", "zoo:emoji", "--concept", "cat", *common, *regression]
    assert run(capsys, *alone, "-o", tmp_path / "cat")[0] == 0
    options = {"ablations": 40, "fraction": 0.1, "draw": "bernoulli", "solver": "ridge"}
    mine, theirs = Scores.load(tmp_path / "many" / "cat"), Scores.load(tmp_path / "cat")
    assert mine.concept == "cat" and mine.provenance["options"].items() >= options.items()
    scale = float(theirs.values.abs().max())
    torch.testing.assert_close(mine.values, theirs.values, rtol=1e-2, atol=1e-2 * scale)
    shared = json.loads((tmp_path / "many" / "overlap.json").read_text())
    assert shared["concepts"] == ["car", "cat", "dog"] and [row[i] for i, row in enumerate(shared["shares"])] == [1] * 3
    assert (tmp_path / "many" / "overlap.png").read_bytes().startswith(b"\x89PNG")
    edit = ["edit", "make", tmp_path / "many" / "car", "--erase", "--ratio", 0.1, "--keep", tmp_path / "many" / "dog"]
    assert run(capsys, *edit, "-o", tmp_path / "edit")[0] == 0


def test_many_concepts_of_a_file_by_gradients(tmp_path, capsys):
    prompts = {"concepts": {"tree": ["a tree in noto style"], "clock/old": ["an old clock"], "dog": ["a dog"]}}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    common = ["--concepts", tmp_path / "prompts.json", "--kind", "head", "--samples", 1, "--steps", 2, "--quiet"]
    code, out, err = run(
        capsys, "attribute", "zoo:emoji", *common, "--method", "gradient", "--holdout", 8, "-o", tmp_path / "all"
    )
    assert code == 0, err
    assert "3 concepts, gradient" in out and out.count("slope") == 9 and "clock/old: " in out
    assert Scores.load(tmp_path / "all" / "tree").provenance["prompts"] == ["a tree in noto style"]
    assert json.loads((tmp_path / "all" / "concepts.json").read_text())["clock/old"] == "00001.safetensors"
    some = ["attribute", "zoo:emoji", *common, "--concept", "dog", "--method", "exact", "-o", tmp_path / "dog"]
    assert run(capsys, *some)[0] == 0 and Scores.load(tmp_path / "dog").concept == "dog"
    code, _, err = run(capsys, "attribute", "zoo:emoji", *common, "--concept", "doge", "-o", tmp_path / "doge")
    assert code == 2 and "unknown concept 'doge'; did you mean 'dog'?" in err


@pytest.mark.slow
def test_attribute_on_a_ray_cluster(tmp_path, capsys):
    pytest.importorskip("ray")
    common = ["attribute", "zoo:emoji", "--concept", "car", "cat", "--kind", "head", "--samples", 1, "--steps", 2]
    common += ["--method", "regression", "--ablations", 30, "--fraction", 0.1, "--holdout", 8, "--quiet"]
    for folder, more in (("local", []), ("ray", ["--executor", "ray", "--workers", 2])):
        code, _, err = run(capsys, *common, *more, "-o", tmp_path / folder)
        assert code == 0, err
    for concept in ("car", "cat"):
        local, ray = (Scores.load(tmp_path / folder / concept) for folder in ("local", "ray"))
        assert torch.equal(local.values, ray.values) and local.trust == ray.trust


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--fraction", "0.1"], "--fraction goes with --method ablated_gradient or second_order or regression"),
        (["--ablations", "9", "--method", "exact"], "--ablations goes with --method regression, here it is exact"),
        (
            ["--solver", "lsmr", "--kind", "neuron"],
            "--solver goes with --method regression, here it is ablated_gradient",
        ),
        (["--draw", "bernoulli"], "--draw goes with --method regression"),
        (["--stop-at-r", "0.9", "--method", "exact"], "--stop-at-r goes with --method ablated_gradient or regression"),
        (["--executor", "ray"], "--executor ray goes with --method regression or exact, here it is gradient"),
        (["--workers", "2", "--method", "exact"], "--workers goes with --executor ray"),
        (["--holdout", "8", "--method", "sensitivity"], "--holdout goes with --method gradient or "),
        (["--holdout", "7"], "holdout is 7, expected at least 8"),
        (["--compare", "--method", "exact"], "--method does not go with --compare"),
        (["--compare", "--ablations", "9"], "--ablations does not go with --compare"),
        (["--compare", "--concept", "dog"], "--compare takes one concept, got 2"),
        (["--concept", "dog", "cat"], "--concept cat is given twice"),
        (["--concept", "dog", "--images", "folder", "--objective", "denoising"], "--images folder is a folder for one"),
    ],
)
def test_options_of_attribution_that_do_not_go_together(tmp_path, capsys, more, message):
    common = ["--samples", 1, "--steps", 1, "--quiet", "-o", tmp_path / "out"]
    code, _, err = run(capsys, "attribute", "zoo:emoji", "--concept", "cat", *more, *common)
    assert code == 2 and message in err, err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_edit_is_refined(workspace, tmp_path, capsys):
    refining = ["--refine", "zoo:emoji", "--samples", 2, "--rounds", 1, "--negative-guidance", 1, "--quiet"]
    refining += ["--keep", workspace / "clock"]
    code, _, err = run(capsys, "edit", "make", workspace / "car", "--erase", "--ratio", 0.01, *refining, "-o", tmp_path)
    assert code == 0, err
    refined = json.loads((tmp_path / "edit_config.json").read_text())["provenance"]["refined"]
    assert refined["rounds"] == 1 and refined["objective"]["negative_guidance"] == 1.0
    assert refined["selection"]["sensitivity"] == refined["selection"]["keep"] == ["clock"]
    published = ["--erase", "--ratio", 0.1, *refining, "--compat", "paper", "-o", tmp_path]
    code, _, err = run(capsys, "edit", "make", workspace / "car", *published)
    assert code == 2 and "--refine does not go with --compat" in err


def test_generate(workspace, tmp_path, capsys):
    code, out, _ = run(
        capsys, "generate", "zoo:emoji", "--prompt", "a car in noto style", "--images-per-prompt", 2, "--steps", 3,
        "--edit", workspace / "edit", "--strength", 0, 1, "--json", "-o", tmp_path,
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0 and len(result["pictures"]) == 4
    pictures = [open(path, "rb").read() for path in result["pictures"]]
    assert len(set(pictures)) == 4 and (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate(workspace, tmp_path, capsys):
    arguments = ["--per-concept", 1, "--steps", 2, "--quiet"]
    code, out, _ = run(
        capsys, "evaluate", "zoo:emoji", "--edit", workspace / "edit", "--target", "car", "-o", tmp_path, *arguments
    )
    assert code == 0 and "car became" in out
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["comparison"]["targets"] == ["car"]
    assert {path.name for path in tmp_path.iterdir()} >= {"before.json", "after.json", "before_after.png"}
    code, out, _ = run(capsys, "evaluate", "zoo:emoji", *arguments)
    assert code == 0 and len(out.splitlines()) == 12


def test_evaluate_with_several_scorers_attacks_and_captions(workspace, tmp_path, capsys):
    (tmp_path / "attack.csv").write_text(
        "prompt,object,style,seed\na car in noto style,car,noto,5\na car,car,fluent,6\n"
    )
    (tmp_path / "rab.csv").write_text("prompt,case_number,evaluation_seed\ncarcar,0,41\n")
    (tmp_path / "coco.csv").write_text("prompt,evaluation_seed\na face,1\na moon,2\n")
    clip = save_clip(tmp_path / "tiny-clip")
    code, out, err = run(
        capsys, "evaluate", "zoo:emoji", "--edit", workspace / "edit", "--target", "car", "-o", tmp_path / "out",
        "--scorer", "zoo", "--scorer", f"clip:{clip}", "--scorer", "colour", "--attack", tmp_path / "attack.csv",
        "--attack", f"ring-a-bell:{tmp_path / 'rab.csv'}", "--captions", f"coco:{tmp_path / 'coco.csv'}", "--limit", 1,
        "--adjacent", "cat", "--per-concept", 1, "--steps", 2, "--quiet",
    )  # fmt: skip
    assert code == 0, err
    assert "ring-a-bell, no-car: the target is seen in" in out and "by CLIP tiny-clip:" in out
    with open(tmp_path / "out" / "evaluation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["rows"][0]["of"] == rows[0]["of"]
    for metric, of in (
        ("UA", "car"), ("IRA", "others"), ("CRA", "others"), ("ERB", "car"), ("ASR", "attack"), ("ASR", "ring-a-bell"),
    ):  # fmt: skip
        found = [(row["edit"], row["by"]) for row in rows if (row["metric"], row["of"]) == (metric, of)]
        by = ("emoji classifier", "CLIP tiny-clip")
        assert sorted(found) == sorted((edit, each) for edit in ("no edit", "no-car") for each in by), metric
    captions = [(row["metric"], row["edit"], row["n"]) for row in rows if row["of"] == "coco"]
    assert ("CLIP score", "no edit", "1") in captions and ("colour mean to no edit", "no-car", "1") in captions
    assert len([row for row in rows if row["metric"] == "CLIP score" and row["of"] == "car"]) == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"before-2.json", "after-2.json"}


def test_a_local_folder(workspace, tmp_path, capsys):
    stable_diffusion().save_pretrained(tmp_path / "model")
    common = ["--samples", 1, "--steps", 2, "--quiet", "-o", tmp_path / "scores"]
    code, _, err = run(capsys, "attribute", tmp_path / "model", "--prompt", "a cat", *common)
    assert code == 0, err
    code, _, err = run(
        capsys, "generate", tmp_path / "model", "--prompt", "a cat", "--edit", workspace / "edit", "-o", tmp_path
    )
    assert code == 2 and "edit 'no-car' was made for another model" in err


def test_env(capsys):
    code, out, _ = run(capsys, "env", "--json")
    assert code == 0 and json.loads(out)["versions"]["torch"]
    code, out, _ = run(capsys, "env")
    assert code == 0 and "versions:" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attribute", "zoo:emoji", "--concept", "catt", "-o", "OUT"], "did you mean cat"),
        (["attribute", "zoo:emojis", "--concept", "cat", "-o", "OUT"], "the zoo has no model 'emojis'"),
        (["attribute", "OUT", "--concept", "cat", "-o", "OUT"], "give --prompt"),
        (
            ["attribute", "zoo:emoji", "--concept", "cat", "--target-modules", "cross-atention-kv", "-o", "OUT"],
            "cross-attention-kv",
        ),
        (["attribute", "zoo:emoji", "--concept", "cat", "--images", "x", "-o", "OUT"], "--images goes with"),
        (["attribute", "zoo:emoji", "--concept", "cat", "--samples", "0", "-o", "OUT"], "--samples is 0"),
        (["attribute", "zoo:emoji", "-o", "OUT"], "--concept, --concepts or --prompt is needed"),
        (["attribute", "zoo:emoji", "--prompt", "x", "--concepts", "y", "-o", "OUT"], "does not go with --prompt"),
        (["attribute", "./no/where", "--prompt", "x", "-o", "OUT"], "does not exist"),
        (["edit", "make", "OUT/none", "--erase", "--ratio", "0.1", "-o", "OUT"], "does not exist"),
        (["generate", "zoo:emoji", "--prompt", "x", "--strength", "1", "-o", "OUT"], "--strength needs --edit"),
        (["generate", "zoo:emoji", "--prompt", "x", "--edit", "OUT", "-o", "OUT"], "holds no edit_config.json"),
        (["evaluate", "zoo:emoji", "--edit", "OUT"], "--edit needs --target"),
        (["evaluate", "zoo:emoji", "--target", "carr"], "car"),
        (["evaluate", "OUT"], "--concepts is needed"),
        (["evaluate", "zoo:emoji", "--scorer", "eyes"], "expected clip:MODEL"),
        (["evaluate", "zoo:emoji", "--scorer", "fd:eyes"], "expected fd:zoo or fd:clip:MODEL"),
        (["evaluate", "zoo:emoji", "--scorer", "lpips:OUT/l.safetensors"], "Download torchvision's weights of AlexNet"),
        (["evaluate", "zoo:emoji", "--scorer", "aesthetic:x"], "expected aesthetic:MODEL,HEAD"),
        (["evaluate", "zoo:emoji", "--attack", "i2p:OUT/i2p.csv"], "--attack needs --target"),
        (["evaluate", "zoo:emoji", "--captions", "coco:OUT/x.csv?a"], "'a' is not COLUMN=VALUE"),
        (["evaluate", "zoo:emoji", "--captions", "coco:OUT/x.csv"], "x.csv"),
        (["evaluate", "zoo:emoji", "--reference", "OUT"], "holds no pictures"),
        (["evaluate", "OUT", "--captions", "FILE"], "is not valid JSON: Expecting value: line 1 column 1"),
        (["demo", "-o", "FILE"], "is a file"),
    ],
)
def test_errors_have_exit_code_2_and_say_what_is_wrong(tmp_path, capsys, arguments, message):
    (tmp_path / "file").write_text("")
    arguments = [a.replace("OUT", str(tmp_path)).replace("FILE", str(tmp_path / "file")) for a in arguments]
    code, _, err = run(capsys, *arguments, "--quiet")
    assert code == 2 and message in err and "Traceback" not in err, err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_help_is_quick_and_has_examples():
    """Without importing torch or diffusers, whatever the command."""
    script = "import sys; from cad_fast.cli import build_parser; build_parser()"
    script += "; assert not {'torch', 'diffusers', 'numpy', 'PIL'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True)

    def parsers(parser, name):
        nested = parser._subparsers._group_actions[0].choices if parser._subparsers else {}
        yield name, parser.format_help()
        for each, its_parser in nested.items():
            yield from parsers(its_parser, f"{name} {each}")

    texts = dict(parsers(build_parser(), "cad-fast"))
    assert {"cad-fast edit make", "cad-fast edit verify", "cad-fast serve", "cad-fast env"} < texts.keys()
    for name, text in texts.items():
        assert "exit codes: 0 done" in text
        assert name == "cad-fast" or name in text.split("example:")[1]


def test_a_missing_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2


def test_the_choices_are_those_of_the_library() -> None:
    from cad_fast import choices
    from cad_fast.attribution.methods.registry import ESTIMATORS

    assert set(ESTIMATORS) == set(choices.METHODS)


def test_only_the_command_asked_for_is_known_by_its_arguments(monkeypatch, capsys) -> None:
    """What another command's options import may be missing."""
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(SystemExit) as stop:
        main(["edit", "--help"])
    assert stop.value.code == 0 and "inspect" in capsys.readouterr().out
    assert main(["serve", "zoo:emoji"]) == 2


def test_scores_are_saved_smaller(tmp_path, capsys) -> None:
    common = ["--target-modules", "cross-attention-kv", "--samples", 1, "--steps", 2, "--quiet"]
    small = ["--save-dtype", "float16", "--save-top", 500]
    code, _, err = run(capsys, "attribute", "zoo:emoji", "--concept", "cat", *common, *small, "-o", tmp_path / "one")
    assert code == 0, err
    assert Scores.load(tmp_path / "one").provenance["stored"] == {"dtype": "float16", "top": 500, "dropped": []}
    assert (tmp_path / "one" / "scores.safetensors").stat().st_size < 60_000
    make = ["edit", "make", tmp_path / "one", "--erase", "-o", tmp_path / "edit"]
    assert run(capsys, *make, "--count", 20)[0] == 0
    code, _, err = run(capsys, *make, "--ratio", 0.5)
    assert code == 2 and "500 largest" in err and "--save-top" in err
    code, _, err = run(capsys, "attribute", "zoo:emoji", "--concept", "cat", "dog", *common, *small, "-o", tmp_path)
    assert code == 0, err
    assert len(Scores.load(tmp_path / "dog").kept) == 500


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        ({"failed": 0}, 0, ""),
        ({"failed": 2}, 1, ""),
        (RuntimeError("the disk is gone"), 1, "cad-fast env: failed: the disk is gone"),
        (MemoryError("too much"), 1, "cad-fast env: failed: too much"),
        (OSError("no space"), 1, "cad-fast env: failed: no space"),
        (ValueError("no such thing"), 2, "cad-fast env: error: no such thing"),
        (FileNotFoundError("nothing there"), 2, "cad-fast env: error: nothing there"),
        (ImportError("this needs ray"), 2, "cad-fast env: error: this needs ray"),
        (KeyboardInterrupt("stopped; go on with --resume"), 130, "stopped; go on with --resume"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(monkeypatch, capsys, outcome, code, said) -> None:
    def run_env(arguments):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr("cad_fast.cli.env.run", run_env)
    assert main(["env"]) == code and capsys.readouterr().err.strip() == said


def test_steps_and_guidance_are_the_pipelines_own(tmp_path, capsys) -> None:
    """Except for the zoo's models, which have those of their figures."""
    from cad_fast.cli.common import generation_of

    def chosen(*arguments):
        parsed = build_parser().parse_args(["generate", *arguments, "--prompt", "x", "-o", "y"])
        return generation_of(parsed)

    assert chosen("zoo:emoji") == Generation(20, 3.0)
    assert chosen("zoo:emoji", "--steps", "4") == Generation(4, 3.0)
    assert chosen("zoo:emoji-flow") == zoo.generation("emoji-flow") != zoo.generation("emoji")
    steps = chosen("zoo:emoji-flow", "--steps", "4")
    assert steps == replace(zoo.generation("emoji-flow"), num_inference_steps=4) and steps.arguments
    assert chosen("folder") == Generation()
    assert chosen("folder", "--guidance-scale", "0", "--size", "24x16") == Generation(
        None, 0, {"width": 24, "height": 16}
    )
    stable_diffusion().save_pretrained(tmp_path / "model")
    common = ["--prompt", "a cat", "--samples", 1, "--steps", 1, "--size", "24x16", "--quiet"]
    code, _, err = run(capsys, "attribute", tmp_path / "model", *common, "-o", tmp_path / "scores")
    assert code == 0, err
    made_with = Scores.load(tmp_path / "scores").provenance
    assert made_with["guidance_scale"] == 7.5 and made_with["pipeline_kwargs"] == {"width": 24, "height": 16}
    code, _, err = run(capsys, "attribute", tmp_path / "model", *common, "--size", "24", "-o", tmp_path / "x")
    assert code == 2 and "--size is 24, expected WIDTHxHEIGHT" in err
