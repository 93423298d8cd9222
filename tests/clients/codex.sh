# Codex.
# packages: npm:@openai/codex@0.171.0
# engine: scripted
# checks: stream tools wrong_key
set -e
mkdir -p "$HOME/.codex"
cat > "$HOME/.codex/config.toml" <<END
# settings
# ~/.codex/config.toml
model = "$MODEL"
model_provider = "space"

[model_providers.space]
name = "Space"
base_url = "$URL/v1"
env_key = "KEY"
wire_api = "responses"
# end
END

cd "$HOME"
codex exec --skip-git-repo-check --sandbox danger-full-access "$PROMPT"
