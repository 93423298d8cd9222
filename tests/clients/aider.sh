# Aider.
# packages: aider-chat==0.86.2
# engine: scripted
# checks: chat stream wrong_key
set -e

# settings
export OPENAI_API_BASE=$URL/v1 OPENAI_API_KEY=$KEY
export AIDER_MODEL=openai/$MODEL
# end
aider="aider --no-git --yes-always --no-pretty --no-check-update --analytics-disable"
aider+=" --no-show-model-warnings --no-show-release-notes"

cd "$HOME"
case $1 in
  chat) $aider --no-stream --message "$PROMPT" ;;
  stream) $aider --message "$PROMPT" ;;
esac
