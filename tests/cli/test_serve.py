"""The options of ``cad-fast serve``: each setting is one, and errors name it as it was written."""

import sys

import pytest

from cad_fast.cli import build_parser, main
from cad_fast.cli.serve import PACKAGES, option_of, settings_of
from cad_fast.serving.integrations.arguments import ServerArguments


def settings(*options: str) -> ServerArguments:
    return settings_of(build_parser().parse_args(["serve", "zoo:emoji", *options]))


def test_without_options_the_settings_are_the_defaults() -> None:
    chosen = settings()
    assert chosen.allowed_hosts == ("localhost", "127.0.0.1")
    assert chosen == ServerArguments(model="zoo:emoji", allowed_hosts=chosen.allowed_hosts)


def test_options(tmp_path) -> None:
    chosen = settings(
        *("--host", "0.0.0.0", "--sizes", "32x32", "64x64", "--batch-timeout", "0.02", "--max-queue", "4"),
        *("--no-warm-up", "--edit-dir", "edits", "--keep-bytes", "100"),
    )
    assert chosen.allowed_hosts is None and chosen.sizes == ("32x32", "64x64")
    assert chosen.batch_timeout == 0.02 and chosen.max_queue == 4 and chosen.keep_bytes == 100
    assert chosen.warm_up is False and chosen.edit_dir == "edits" and chosen.picture_urls is True
    assert settings("--host", "::1").allowed_hosts == ("localhost", "127.0.0.1", "::1")
    assert settings("--allowed-hosts", "a.example", "b.example").allowed_hosts == ("a.example", "b.example")


def test_every_setting_is_an_option(capsys) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in ServerArguments.model_fields:
        assert option_of(name) in text, name
    assert "--batch-timeout SECONDS" in text and "waits for more requests to batch" in text
    assert "a number of seconds, at least 0 (default: 0.005)" in text
    assert "(default: 8, or max_queue if that is less)" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-queue", "0"], "--max-queue is '0', expected a whole number of pictures, at least 1"),
        (["--max-n", "many"], "--max-n is 'many', expected a whole number of pictures, at least 1"),
        (["--max-queue", "4", "--max-n", "6"], "--max-n is 6, expected at most 4 (--max-queue)"),
        (["--sizes", "16"], "--sizes has '16', expected a list of WIDTHxHEIGHT in pixels"),
        (["--steps", "101"], "--steps is 101, expected at most 100 (--max-steps)"),
        (["--max-steps", "3"], "--steps is 50, expected at most 3 (--max-steps)"),
    ],
)
def test_errors_name_the_option(options, message, capsys) -> None:
    assert main(["serve", "zoo:emoji", *options]) == 2
    assert message in capsys.readouterr().err


def test_admin_tokens(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CAD_FAST_ADMIN_TOKEN", "short")
    assert main(["serve", "zoo:emoji"]) == 2
    assert "the admin token has fewer than 16 characters" in capsys.readouterr().err
    assert main(["serve", "zoo:emoji", "--admin-token-file", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_not_installed_is_named(package, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "cad_fast.serving.http.app", raising=False)
    assert main(["serve", "zoo:emoji", "--max-queue", "4"]) == 2
    assert f"this needs {package}: pip install 'cad-fast[serve]'" in capsys.readouterr().err
    assert main(["env", "--json"]) == 0  # other commands do not need it
