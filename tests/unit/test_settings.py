"""What the owner can set, and what invalid values do."""

import pytest
from pydantic import SecretStr

from vllm_space import errors, settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """Hide the variables and the .env of the machine that runs the tests."""
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setitem(settings.Settings.model_config, "env_file", tmp_path / ".env")
    monkeypatch.setattr(settings, "ROOT", tmp_path)


def load(monkeypatch, *argv: str, **variables: str) -> settings.Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return settings.load(list(argv))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TEMPERATURE", "0.5", 0.5),
        ("TEMPERATURE", "", None),  # empty is unset
        ("MAX_MODEL_LEN", "auto", None),
        ("MAX_MODEL_LEN", "4096", 4096),
        ("TRUST_REMOTE_CODE", "true", True),
        ("STOP", "END\n###", ("END", "###")),
        ("STOP", '["\\n\\n", " "]', ("\n\n", " ")),
        (
            "MODELS",
            '{"a": "http://h:1", "b": "https://h/v1"}',
            {"a": "http://h:1", "b": "https://h/v1"},
        ),
        ("ENGINE_ARGS", "--max-num-seqs 8 -x 'my file'", ("--max-num-seqs", "8", "-x", "my file")),
        ("OAUTH_ALLOWED", "alice, acme", ("alice", "acme")),
        ("APP_EXAMPLES", '["a, b", "c"]', ("a, b", "c")),
        (
            "API_CORS_ORIGINS",
            "https://a.example, http://localhost:3000",
            ("https://a.example", "http://localhost:3000"),
        ),
        ("API_CORS_ORIGINS", "*", ("*",)),
        ("APP_EXAMPLES", "a, b\nc\n", ("a, b", "c")),
    ],
)
def test_text_becomes_a_value(monkeypatch, name, value, expected):
    assert getattr(load(monkeypatch, **{name: value}), name.lower()) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TEMPERATURE", "hot"),
        ("TEMPERATURE", "nan"),
        ("TEMPERATURE", "2.1"),
        ("TOP_P", "0"),
        ("MAX_TOKENS", "-1"),
        ("MAX_TOKENS", "9999999"),  # above MAX_TOKENS_LIMIT
        ("TENSOR_PARALLEL_SIZE", "0"),
        ("DTYPE", "int3"),
        ("ENGINE_PORT", "65536"),
        ("ENGINE_MODULE", "os; rm"),
        ("ENGINE_ARGS", "--flag 'open"),
        ("ENGINE_ARGS", "--api-key=mine"),
        ("ENGINE_ARGS", "--max-num-seqs 4 --host 0.0.0.0"),
        ("MODEL_URL", "localhost:8000"),
        ("MODEL_URL", "http://host:99999"),
        ("MODELS", "not json"),
        ("MODELS", '{"a": "ftp://x"}'),
        ("APP_THEME", "neon"),
        ("MAX_QUEUE", "many"),
        ("API_RATE_LIMIT", "0"),
        ("API_CORS_ORIGINS", "a.example"),
        ("API_CORS_ORIGINS", "https://a.example/"),
        ("TRUST_REMOTE_CODE", "perhaps"),
    ],
)
def test_an_error_names_the_allowed_values(monkeypatch, name, value):
    with pytest.raises(errors.SettingsError) as caught:
        load(monkeypatch, **{name: value})
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(name)
    assert value[:20] in line
    assert len(line) > len(f"{name}={value} is invalid. Use ")  # followed by what is valid


def test_all_errors_are_reported_together(monkeypatch):
    with pytest.raises(errors.SettingsError) as caught:
        load(monkeypatch, TEMPERATURE="hot", MAX_TOKENS="-1", ENGINE_PORT="x")
    assert [line.split("=")[0] for line in str(caught.value).splitlines()] == [
        "ENGINE_PORT",
        "TEMPERATURE",
        "MAX_TOKENS",
    ]


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"APP_USERNAME": "alice"}, "APP_PASSWORD"),
        ({"APP_PASSWORD": "hunter2-marked"}, "APP_USERNAME"),
        ({"APP_USERS": "alice:ok,hunter2-marked"}, "APP_USERS"),
        ({"APP_USERS": "alice:hunter2-marked,:x"}, "APP_USERS"),
        ({"API_KEYS": "hunter2-marked,phone:"}, "API_KEYS"),
        ({"API_KEYS": ":"}, "API_KEYS"),
        ({"MODEL_URL": "http://a", "MODELS": '{"b": "http://b"}'}, "MODELS"),
    ],
)
def test_bad_combinations_are_errors(monkeypatch, variables, names):
    with pytest.raises(errors.SettingsError) as caught:
        load(monkeypatch, **variables)
    assert names in str(caught.value)
    assert "hunter2-marked" not in str(caught.value)


def test_flags_override_env_overrides_file(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("GRADIO_SERVER_PORT=1111\nTEMPERATURE=0.1\nTOP_P=0.2\n")
    config = load(monkeypatch, "--port", "3333", GRADIO_SERVER_PORT="2222", TEMPERATURE="0.3")
    assert (config.gradio_server_port, config.temperature, config.top_p) == (3333, 0.3, 0.2)


def test_a_limit_lowers_the_default(monkeypatch):
    assert load(monkeypatch, MAX_TOKENS_LIMIT="100").max_tokens == 100


def test_typos_get_the_nearest_match(monkeypatch, tmp_path):
    monkeypatch.setenv("APP_PASWORD", "x")
    (tmp_path / ".env").write_text("ENGINE_ARG=--x\n")
    assert settings.unknown_names() == [
        "APP_PASWORD is set, but there is no such variable. Did you mean APP_PASSWORD?",
        "ENGINE_ARG is set, but there is no such variable. Did you mean ENGINE_ARGS?",
    ]


def test_secrets_are_masked(monkeypatch):
    config = load(
        monkeypatch,
        HF_TOKEN="hf_marked",
        APP_USERS="alice:pw-marked,bob:pw-marked-too",
        API_KEYS="phone:key-marked",
    )
    assert (
        config.mask("hf_marked pw-marked-too key-marked pw-marked alice phone")
        == "*** *** *** *** alice phone"
    )
    assert "marked" not in repr(config)
    assert config.logins == {"alice": "pw-marked", "bob": "pw-marked-too"}


def test_settings_cannot_be_changed(monkeypatch):
    with pytest.raises(ValueError, match="frozen"):
        load(monkeypatch).temperature = 1


# -- secrets ---------------------------------------------------------------------------------------


class MoreSecrets(settings.Settings):
    """The settings with two secrets more."""

    webhook_token: SecretStr | None = None
    other_tokens: dict[str, SecretStr] | None = None


def test_a_new_secret_is_masked():
    config = MoreSecrets(
        webhook_token="hook-marked",
        other_tokens={"a": "other-marked"},
        app_users="alice:pass-marked",
        api_keys="k-marked",
    )
    text = "hook-marked other-marked alice pass-marked k-marked"
    assert config.mask(text) == "*** *** alice *** ***"


def test_processes_get_no_secrets(monkeypatch):
    """No variable that holds a SecretStr reaches a process that does not need it."""
    declared = {
        name.upper()
        for name, field in settings.Settings.model_fields.items()
        if "Secret" in repr(field)
    }
    assert declared == settings.SECRETS
    for name in declared:
        monkeypatch.setenv(name, "marked")
    assert not declared & settings.environment_without_secrets().keys()


def test_short_secrets_are_not_masked():
    config = settings.Settings(
        app_username="a", app_password="the", app_users="bob:in", api_keys="x,phone:5"
    )
    log = "the engine in phase 5 is at the end"
    assert config.mask(log) == log
