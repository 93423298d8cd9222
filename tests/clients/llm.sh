# LLM, the command.
# packages: llm==0.36
# checks: list chat stream tools wrong_key too_long
set -e
mkdir -p "$HOME/.config/io.datasette.llm"
cat > "$HOME/.config/io.datasette.llm/extra-openai-models.yaml" <<END
# settings
# ~/.config/io.datasette.llm/extra-openai-models.yaml
- model_id: $MODEL
  model_name: $MODEL
  api_base: $URL/v1
  api_key_name: space
  supports_tools: true
# end
END
llm keys set space --value "$KEY"

case $1 in
  list) llm models list -q "$MODEL" ;;
  chat) llm -m "$MODEL" --no-stream "$PROMPT" ;;
  stream) llm -m "$MODEL" "$PROMPT" ;;
  tools)
    llm -m "$MODEL" --functions 'def weather(city: str): return f"21 degrees in {city}"' "$PROMPT"
    ;;
esac
