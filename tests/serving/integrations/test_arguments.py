"""The typed arguments of servers that an engine starts."""

import pytest

from cad_fast.serving.integrations.arguments import ServerArguments
from cad_fast.serving.settings import Settings
from tests.serving.common import TOKEN


def test_text_becomes_settings(tmp_path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    arguments = ServerArguments.of(
        {
            "model": "zoo:emoji",
            "max_batch_size": "16",
            "batch_timeout": "0.25",
            "sizes": "32x32, 64x64",
            "allowed_hosts": "example.org",
            "warm_up": "false",
            "admin_token_file": str(tmp_path / "token"),
        }
    )
    settings = arguments.settings()
    assert settings == Settings(
        model="zoo:emoji",
        max_batch_size=16,
        batch_timeout=0.25,
        sizes=("32x32", "64x64"),
        allowed_hosts=("example.org",),
        warm_up=False,
        admin_token=TOKEN,
    )
    assert TOKEN not in repr(arguments) and TOKEN not in str(arguments.model_dump())


def test_defaults_are_those_of_the_settings() -> None:
    assert ServerArguments(model="zoo:emoji").settings() == Settings(model="zoo:emoji")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "model: Field required"),
        ({"modle": "zoo:emoji", "model": "a"}, "modle: there is no such argument, there are model, edit_dir, device"),
        ({"model": "a", "max_n": "many"}, "max_n: .*integer"),
        ({"model": "a", "deadline": "nan"}, "deadline: .*finite"),
        ({"model": "a", "admin_token": TOKEN}, "admin_token: there is no such argument"),
    ],
)
def test_what_does_not_fit_is_named(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        ServerArguments.of(values)


def test_paths_are_made_absolute_and_names_are_not(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    arguments = ServerArguments(model="model", edit_dir="edits").with_whole_paths()
    assert arguments.model == str(tmp_path / "model") and arguments.edit_dir == str(tmp_path / "edits")
    assert ServerArguments(model="zoo:emoji").with_whole_paths() == ServerArguments(model="zoo:emoji")
