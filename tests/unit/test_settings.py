"""settings.py, readers.py: what the owner can set, and what invalid values do."""

import pytest
from pydantic import SecretStr

from vllm_space import errors, settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """Hide the variables and the .env of the machine that runs the tests."""
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
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
        ("OAUTH_ALLOWED", '"alice", "acme"', ("alice", "acme")),
        ("APP_EXAMPLES", '["a, b", "c"]', ("a, b", "c")),
        (
            "API_CORS_ORIGINS",
            "https://a.example, http://localhost:3000",
            ("https://a.example", "http://localhost:3000"),
        ),
        ("API_CORS_ORIGINS", "*", ("*",)),
        ("APP_EXAMPLES", "a, b\nc\n", ("a, b", "c")),
        ("TEMPERATURE", ' "0.5"\n', 0.5),
        ("TRUST_REMOTE_CODE", "'true' ", True),
        ("SYSTEM_PROMPT", ' "quoted" ', ' "quoted" '),  # free text stays
        ("STOP", " ", (" ",)),
        ("APP_TITLE", "'x'", "'x'"),
        ("MODEL_IMAGES", "auto", None),
        ("MODEL_IMAGES", "false", False),
        ("MODEL_URL", " 'http://h:1/v1/?api-version=2'\n", "http://h:1/v1/?api-version=2"),
        ("MODEL_URL", "http://user:pass@[::1]:8000", "http://user:pass@[::1]:8000"),
        ("MODEL_URL", "  ", None),
        ("MODELS", " ", {}),
        ("MODELS", "{}", {}),
        ("MODELS", '\'{" a ": "http://h"}\'', {"a": "http://h"}),
        (
            "MODELS",
            '["http://h:1/v1", "http://u:p@h:2/x"]',
            {"h:1": "http://h:1/v1", "h:2/x": "http://u:p@h:2/x"},
        ),
        ("MODELS", '{"": "http://h:1", "b": "http://c"}', {"h:1": "http://h:1", "b": "http://c"}),
        # pasted from a manual
        ("ENGINE_ARGS", "--a 1 \\\n  --b 2 \\\r\n\t--c \\", ("--a", "1", "--b", "2", "--c")),
        ("ENGINE_ARGS", "--a 1\n--b '{\"x\":\n1}'", ("--a", "1", "--b", '{"x":\n1}')),
        ("ENGINE_ARGS", "--a 1 # b", ("--a", "1", "#", "b")),
        ("ENGINE_ARGS", r"--path a\\", ("--path", "a\\")),
        ("ENGINE_ARGS", '"--a 1"', ("--a", "1")),
        ("ENGINE_ARGS", '"--a" "1 2"', ("--a", "1 2")),
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
        ("MODELS", '{"a": "http://x", "a": "http://y"}'),
        ("MODELS", '{"a": 1}'),
        ("MODEL_URL", "http://::1:8000"),
        ("MODEL_IMAGES", "perhaps"),
        ("MODEL_ID", "http://gpu-box:8000/v1"),
        ("MODEL_ID", "https://huggingface.co/spaces/org/name"),
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
    assert settings.warnings(settings.load()) == [
        "APP_PASWORD is set, but there is no such variable. Did you mean APP_PASSWORD?",
        "ENGINE_ARG is set, but there is no such variable. Did you mean ENGINE_ARGS?",
    ]


def test_unreadable_file_is_an_error(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("MODEL_URL http://marked\n")
    with pytest.raises(errors.SettingsError, match="line 1 cannot be read") as caught:
        load(monkeypatch)
    assert "marked" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "model", "revision"),
    [
        ("acme/other/", "acme/other", "main"),
        ("acme/other\n", "acme/other", "main"),
        ("'acme/other'", "acme/other", "main"),
        ("gpt2", "gpt2", "main"),
        ("https://huggingface.co/org/name", "org/name", "main"),
        ("https://huggingface.co/org/name/tree/v2?x=1#top", "org/name", "v2"),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1/sub", "org/name", "refs/pr/1"),
        ("https://huggingface.co/org/name/discussions/1", "org/name", "main"),
        ("https://user:hf_marked@huggingface.co/org/name", "org/name", "main"),
        ("hf.co/org/name/", "org/name", "main"),
        ("https://hub.example/mirror/org/name/tree/v2", "org/name", "v2"),
        ("~/models/x/", "/home/me/models/x", "main"),
        ("./model/", "./model", "main"),
        ("/", "/", "main"),
        ("s3://bucket/shelf/small-chat/", "s3://bucket/shelf/small-chat/", "main"),
        ("gs://bucket/x", "gs://bucket/x", "main"),
        ("org/name:Q4_K_M", "org/name:Q4_K_M", "main"),
    ],
)
def test_model_id_takes_many_forms(monkeypatch, text, model, revision):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/mirror/")
    config = load(monkeypatch, MODEL_ID=text)
    assert (config.model_id, config.model_revision) == (model, revision)
    assert load(monkeypatch, MODEL_REVISION="main").model_revision == "main"  # it overrides
    elsewhere = load(monkeypatch, MODEL_URL="http://h")  # there it is only a name
    assert elsewhere.model_id == text.strip().strip("'")


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


# -- secrets as they are pasted --------------------------------------------------------------------

PAGE = {"APP_USERNAME": "owner"}


def secrets(config: settings.Settings, name: str) -> list[str]:
    value = getattr(config, name.lower())
    values = value if isinstance(value, tuple) else [value]
    return [secret.get_secret_value() for secret in values]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("MODEL_API_KEY", "sk-abc\n", ["sk-abc"]),
        ("MODEL_API_KEY", " 'sk-abc' ", ["sk-abc"]),
        ("MODEL_API_KEY", "Bearer sk-abc", ["sk-abc"]),
        ("MODEL_API_KEY", 'Authorization: bearer "sk-abc"', ["sk-abc"]),
        ("MODEL_API_KEY", "\ufeffsk-abc\u200b", ["sk-abc"]),
        ("HF_TOKEN", '"hf_abc"\r\n', ["hf_abc"]),
        ("HF_TOKEN", "Bearer hf_abc", ["hf_abc"]),
        ("APP_PASSWORD", '"harbour"', ["harbour"]),
        ("APP_PASSWORD", "harbour\n", ["harbour"]),
        ("APP_PASSWORD", " 'blue harbour' ", ["blue harbour"]),
        ("API_KEYS", '"harbour-key"', ["harbour-key"]),
        ("API_KEYS", '"a, b"', ["a", "b"]),
        ("API_KEYS", "'a','b'", ["a", "b"]),
        ("API_KEYS", "phone: a, Bearer b, pc:'c'", ["phone:a", "b", "pc:c"]),
        ("API_KEYS", "a,b\n", ["a", "b"]),
        ("APP_USERS", 'alice: pw, bob:"p w"', ["alice:pw", "bob:p w"]),
        ("APP_USERS", '"alice:pw"', ["alice:pw"]),
    ],
)
def test_secrets_lose_what_surrounds_them(monkeypatch, name, text, expected):
    config = load(monkeypatch, **PAGE | {"APP_PASSWORD": "x", name: text})
    assert secrets(config, name) == expected
    (warning,) = settings.warnings(config)
    assert warning.startswith(f"{name} has ")
    assert not any(secret in warning for secret in ("abc", "harbour"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("MODEL_API_KEY", "sk-a=b+c/d.e_f-g", ["sk-a=b+c/d.e_f-g"]),
        ("MODEL_API_KEY", "Bearer", ["Bearer"]),
        ("APP_PASSWORD", "blue harbour", ["blue harbour"]),
        ("APP_PASSWORD", 'har"bour', ['har"bour']),
        ("APP_PASSWORD", '"', ['"']),
        ("APP_PASSWORD", '"harbour', ['"harbour']),
        ("APP_PASSWORD", "'harbour\"", ["'harbour\""]),
        ("APP_PASSWORD", '"a" or "b"', ['"a" or "b"']),
        ("APP_PASSWORD", "schlüssel пароль 鍵", ["schlüssel пароль 鍵"]),
        ("APP_PASSWORD", "a,b:c", ["a,b:c"]),
        ("APP_USERS", "alice:p:w,bob:'x", ["alice:p:w", "bob:'x"]),
        ("APP_USERS", '["alice:pa,ss"]', ["alice:pa,ss"]),
        ("API_KEYS", "büro:a, b", ["büro:a", "b"]),
        ("API_KEYS", "phone:a:b", ["phone:a:b"]),
    ],
)
def test_secrets_that_are_fine_stay(monkeypatch, name, text, expected):
    config = load(monkeypatch, **PAGE | {"APP_PASSWORD": "x", name: text})
    assert secrets(config, name) == expected
    assert settings.warnings(config) == []


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("MODEL_API_KEY", "sk-marked’", "contains the character ’ (U+2019), which no API key has"),
        ("MODEL_API_KEY", "sk-\u200bmarked", "contains the invisible character U+200B"),
        ("MODEL_API_KEY", "sk-\nmarked", "contains a line break"),
        ("MODEL_API_KEY", "sk-\x1bmarked", "contains a control character"),
        ("HF_TOKEN", "hf_märked", "contains the character ä (U+00E4), which no token has"),
        ("API_KEYS", "marked,phone:marke‑d", "contains the character ‑ (U+2011)"),
        ("API_KEYS", "marked\nmarked2", "separate the keys with commas"),
        ("API_KEYS", "marked,phone:", "entry 2 of 2 has no key"),
        ("APP_PASSWORD", "marked\nmarked", "contains a line break, which cannot be typed"),
        ("APP_PASSWORD", "mark\x00ed".replace("\x00", "\x07"), "contains a control character"),
        ("APP_PASSWORD", "marked\udcfc", "contains a byte that is not UTF-8"),
        ("APP_USERNAME", "mar\tked", "contains a control character"),
        ("APP_USERS", "alice:marked,marked", "entry 2 of 2 is not name:password"),
        ("APP_USERS", "alice:mark\ned", "separate the logins with commas"),
    ],
)
def test_unusable_secret_is_explained(monkeypatch, name, text, reason):
    with pytest.raises(errors.SettingsError) as caught:
        load(monkeypatch, **PAGE | {"APP_PASSWORD": "x", name: text})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{name} ")
    assert reason in line
    assert "mark" not in line


def test_quotes_elsewhere_are_a_warning(monkeypatch):
    config = load(monkeypatch, MODEL_ID="'acme/x'", TEMPERATURE='"0.5"', APP_TITLE='"x"')
    assert settings.warnings(config) == [
        "MODEL_ID has quotes around its value: ignoring them.",
        "TEMPERATURE has quotes around its value: ignoring them.",
    ]


# -- secrets in addresses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MODEL_URL", "user:marked@host:8000"),
        ("MODEL_URL", "http://user:mar/ked@host:8000"),
        ("MODEL_URL", "http://user:marked@host:99999"),
        ("MODEL_URL", "http://user:mar\uff1aked@host"),  # a full-width colon
        ("MODEL_URL", "http://[marked]@host"),
        ("MODEL_URL", "ftp://host/?api-version=1&key=marked"),
        ("MODELS", '{"a": "http://user:mar"ked@host"}'),
        ("MODELS", '{"a": "ftp://host?sig=marked"}'),
        ("MODEL_ID", "https://user:marked@gpu.example/v1"),
    ],
)
def test_errors_hide_secrets_in_addresses(monkeypatch, name, text):
    with pytest.raises(errors.SettingsError) as caught:
        load(monkeypatch, **{name: text})
    assert "***" in str(caught.value)
    assert "mar" not in str(caught.value)


def test_secrets_in_addresses_are_masked(monkeypatch):
    config = load(
        monkeypatch, MODEL_URL="http://user:pass%40marked@h/v1?api_key=key-marked&api-version=2024"
    )
    text = "pass@marked pass%40marked key-marked 2024 http://any:pw@h https://site.example/@user"
    assert config.mask(text) == "*** *** *** 2024 http://***@h https://site.example/@user"


# -- the token for the Hub -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "file", "token", "origin"),
    [
        ({}, None, None, "HF_TOKEN"),
        ({}, "hf_file\n", "hf_file", "the token in {path}"),
        ({}, "\n", None, "the token in {path}"),
        ({"HUGGING_FACE_HUB_TOKEN": "hf_old"}, "hf_file", "hf_old", "HUGGING_FACE_HUB_TOKEN"),
        ({"HUGGING_FACE_HUB_TOKEN": "hf_old", "HF_TOKEN": "hf_new"}, None, "hf_new", "HF_TOKEN"),
        ({"HF_TOKEN": " "}, "hf_file", "hf_file", "the token in {path}"),
        ({"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, "hf_file", None, "HF_TOKEN"),
    ],
)
@pytest.mark.parametrize("place", ["HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_token_is_found_like_the_hub_does(monkeypatch, tmp_path, env, file, token, origin, place):
    folders = {"XDG_CACHE_HOME": "huggingface", "HOME": ".cache/huggingface"}
    path = tmp_path / folders.get(place, "") / "token"
    for name in ("HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(place, str(path if place == "HF_TOKEN_PATH" else tmp_path))
    if file is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)
    config = load(monkeypatch, **env)
    assert (config.hf_token and config.hf_token.get_secret_value()) == token
    if token:
        assert config.hf_token_origin == origin.format(path=path)
        assert config.mask(f"a {token} b") == "a *** b"


def test_no_home_folder_means_no_token(monkeypatch):
    for name in ("HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert load(monkeypatch).hf_token is None


def test_old_token_reaches_no_other_process(monkeypatch):
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_marked")
    assert "hf_marked" not in settings.environment_without_secrets().values()
