# Claude Code.
# packages: npm:@anthropic-ai/claude-code@2.1.332
# engine: scripted
# checks: stream tools wrong_key
set -e

# settings
export ANTHROPIC_BASE_URL=$URL ANTHROPIC_AUTH_TOKEN=$KEY
export ANTHROPIC_MODEL=$MODEL ANTHROPIC_SMALL_FAST_MODEL=$MODEL
# end
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 CLAUDE_CODE_MAX_RETRIES=0

cd "$HOME"
claude --print --allowedTools Bash -- "$PROMPT"
