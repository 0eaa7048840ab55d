"""Which names are asked of the Hub: what says so, and nothing that could be a path which was misspelt or has gone."""

from pathlib import Path

import pytest

from cad_fast import load_edit
from cad_fast.cli import main
from cad_fast.edits.files.hub import hub_repository
from cad_fast.edits.files.sources import open_source
from cad_fast.loading import load_pipeline
from tests.pipelines import stable_diffusion
from tests.serving.common import random_edit


@pytest.fixture
def asked(monkeypatch):
    """The names that the Hub was asked for. It has nothing."""
    import huggingface_hub

    names = []

    def ask(name, *_, **__):
        names.append(name)
        raise OSError("the Hub has nothing")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", ask)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name, **_: ask(name))
    return names


@pytest.mark.parametrize("source", ["typo", "./me/typo", "/edits/typo", "~/typo", "a/b/c", "edits/typo/", "hub:typo"])
def test_paths_and_bare_names_are_no_repositories(asked, source) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder here, and no repository of the Hub"):
        load_edit(source)
    assert asked == []


def test_a_name_whose_first_part_is_on_the_disk_is_a_path(asked, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edits").mkdir()
    for verb in ("inspect", "diff"):
        assert main(["edit", verb, *["edits/typo"] * (1 + (verb == "diff"))]) == 2
        assert "edits/typo does not exist, but edits is here: it is taken for a path" in capsys.readouterr().err
    assert main(["edit", "verify", "edits/typo"]) == 1
    with pytest.raises(FileNotFoundError, match="the Hub is not asked"):
        load_pipeline("edits/typo")
    with pytest.raises(FileNotFoundError, match="is no folder here"):
        load_edit(Path("me/typo"))
    assert asked == []


def test_repositories_are_asked_for(asked, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edits").mkdir()
    for source in ("me/no-cat", "hub:me/no-cat", "hub:edits/typo"):
        with pytest.raises(FileNotFoundError):
            load_edit(source)
    assert asked == ["me/no-cat", "me/no-cat", "edits/typo"]
    with pytest.raises(FileNotFoundError):
        load_pipeline("hub:edits/typo", cache_dir=tmp_path)
    assert asked[3] == "edits/typo"
    assert hub_repository("hub:me/no-cat") == "me/no-cat"


def test_an_edit_that_is_read_when_needed_comes_from_its_folder_or_not_at_all(asked, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    random_edit(stable_diffusion(), "no-cat", 1).save_pretrained("edits/no-cat")
    source, _ = open_source("edits/no-cat", 0, True, {})
    (tmp_path / "edits").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="holds no edit_config"):
        source.read()
    assert asked == []
