"""The settings: what is refused and with which words, and what a server makes of them."""

import pytest

from cad_fast.serving.settings import SettingInfo, Settings, SettingsError, read_admin_token
from tests.pipelines import stable_diffusion
from tests.serving.common import TOKEN, make_server


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("deadline", 0.0, "a number of seconds, more than 0"),
        ("deadline", float("nan"), "a number of seconds, more than 0"),
        ("max_batch_size", 0, "a whole number of pictures, at least 1"),
        ("max_batch_size", True, "a whole number of pictures, at least 1"),
        ("max_batch_size", 1.5, "a whole number of pictures, at least 1"),
        ("batch_timeout", -1, "a number of seconds, at least 0"),
        ("max_n", 0, "a whole number of pictures, at least 1"),
        ("max_steps", 0, "a whole number of steps, at least 1"),
        ("steps", 0, "a whole number of steps, at least 1"),
        ("drain", -1.0, "a number of seconds, at least 0"),
        ("max_strength", -1.0, "a number, at least 0"),
        ("max_strength", False, "a number, at least 0"),
        ("max_edits", -1, "a whole number of edits, at least 0"),
        ("keep_pictures", float("inf"), "a number of seconds, at least 0"),
        ("warm_up", "maybe", "true or false"),
        ("sizes", (), "a list of WIDTHxHEIGHT in pixels, each up to 8192, such as 512x512"),
    ],
)
def test_what_is_out_of_range_is_named(setting, value, expected) -> None:
    with pytest.raises(SettingsError) as error:
        Settings(**{setting: value})
    assert str(error.value) == f"{setting} is {value!r}, expected {expected}"


@pytest.mark.parametrize("size", ["16", "0x16", "16x", "16x9000", "axb", "16x16x16"])
def test_sizes(size) -> None:
    with pytest.raises(SettingsError, match=f"sizes has '{size}', expected a list of WIDTHxHEIGHT in pixels"):
        Settings(sizes=("16x16", size))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 101}, r"steps is 101, expected at most 100 \(max_steps\)"),
        ({"guidance_scale": 31}, r"guidance_scale is 31, expected at most 30 \(max_guidance_scale\)"),
        ({"max_queue": 2, "max_n": 3}, r"max_n is 3, expected at most 2 \(max_queue\)"),
        ({"max_que": 2}, "max_que is no setting: the settings are model, max_batch_size, "),
    ],
)
def test_settings_that_do_not_fit(settings, message) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        Settings(**settings)
    if "max_n" in settings:
        spelled = error.value.spelled(lambda name: f"--{name.replace('_', '-')}")
        assert str(spelled) == "--max-n is 3, expected at most 2 (--max-queue)"


def test_a_default_of_the_pipeline_beyond_a_limit_is_named() -> None:
    with pytest.raises(SettingsError, match=r"steps is 50, expected at most 10 \(max_steps\)"):
        make_server(stable_diffusion(), steps=None, max_steps=10)


def test_what_is_left_open_is_completed() -> None:
    settings = make_server(stable_diffusion(), steps=None, max_queue=3).settings
    assert settings.sizes == ("16x16",) and settings.steps == 50 and settings.max_n == 3
    assert make_server(stable_diffusion(), max_n=5).settings.max_n == 5
    assert make_server(stable_diffusion()).settings.max_n == 8


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().max_queue = 3


def test_served_name(tmp_path) -> None:
    assert Settings(model=str(tmp_path)).served_name == tmp_path.name
    assert Settings(model="zoo:emoji").served_name == "zoo:emoji"


def test_every_setting_says_what_it_is() -> None:
    for name in Settings.model_fields:
        info = SettingInfo.of(Settings, name)
        assert info.description and info.kind and info.default and not info.default.startswith("None"), name
    assert SettingInfo.of(Settings, "max_n").default == "8, or `max_queue` if that is less"
    assert SettingInfo.of(Settings, "keep_bytes").default == "67108864"
    assert SettingInfo.of(Settings, "warm_up").is_switch and SettingInfo.of(Settings, "sizes").is_list


def test_admin_token(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("CAD_FAST_ADMIN_TOKEN", raising=False)
    assert read_admin_token(None) is None
    monkeypatch.setenv("CAD_FAST_ADMIN_TOKEN", "from-the-environment")
    assert read_admin_token(None) == "from-the-environment"
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_admin_token(tmp_path / "token") == TOKEN
    monkeypatch.setenv("CAD_FAST_ADMIN_TOKEN", "short")
    with pytest.raises(ValueError, match="fewer than 16 characters"):
        read_admin_token(None)
