"""The typed arguments of servers that an engine starts."""

import pytest

from cad_fast.serving.integrations.arguments import ServerArguments
from cad_fast.serving.settings import Settings
from tests.serving.common import TOKEN


def test_text_becomes_settings(tmp_path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    arguments = ServerArguments(
        model="zoo:emoji",
        max_batch_size="16",
        batch_timeout="0.25",
        sizes="32x32, 64x64",
        allowed_hosts="example.org",
        warm_up="false",
        admin_token_file=str(tmp_path / "token"),
    )
    expected = Settings(
        model="zoo:emoji",
        max_batch_size=16,
        batch_timeout=0.25,
        sizes=("32x32", "64x64"),
        allowed_hosts=("example.org",),
        warm_up=False,
    )
    assert {name: getattr(arguments, name) for name in Settings.model_fields} == expected.model_dump()
    assert TOKEN not in repr(arguments) and TOKEN not in str(arguments.model_dump())


def test_defaults_are_those_of_the_settings() -> None:
    arguments, settings = ServerArguments(model="zoo:emoji"), Settings(model="zoo:emoji")
    assert {name: getattr(arguments, name) for name in Settings.model_fields} == settings.model_dump()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "^model is missing: what is served"),
        (
            {"modle": "a", "model": "a"},
            "^modle is no setting: the settings are model, max_batch_size, .*edit_dir",
        ),
        ({"model": "a", "max_n": "many"}, "^max_n is 'many', expected a whole number of pictures, at least 1$"),
        ({"model": "a", "deadline": "nan"}, "^deadline is 'nan', expected a number of seconds, more than 0$"),
        ({"model": "a", "warm_up": "perhaps"}, "^warm_up is 'perhaps', expected true or false$"),
        ({"model": "a", "admin_token": TOKEN}, "^admin_token is no setting"),
        ({"model": "a", "max_n": 0, "drain": -1}, "^drain is -1, expected .*; max_n is 0, expected "),
    ],
)
def test_what_does_not_fit_is_named(values, message) -> None:
    for make in (ServerArguments.model_validate, lambda values: ServerArguments(**values)):
        with pytest.raises(ValueError, match=message) as error:
            make(values)
        assert "pydantic" not in str(error.value)


def test_paths_are_made_absolute_and_names_are_not(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    arguments = ServerArguments(model="model", edit_dir="edits").with_whole_paths()
    assert arguments.model == str(tmp_path / "model") and arguments.edit_dir == str(tmp_path / "edits")
    assert ServerArguments(model="zoo:emoji").with_whole_paths() == ServerArguments(model="zoo:emoji")
