# LM Evaluation Harness.
# packages: lm-eval[api]==0.4.13 transformers>=5
# variants: local-chat-completions local-completions
# checks: chat wrong_key
set -e
cd "$HOME"
printf '{"question": "%s"}\n' "$PROMPT" >questions.jsonl
cat >space.yaml <<'END'
task: space
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{question}}"
END

# settings
export OPENAI_API_KEY=$KEY
chat="--model local-chat-completions --model_args model=$MODEL,base_url=$URL/v1/chat/completions"
text="--model local-completions"
text+=" --model_args model=$MODEL,base_url=$URL/v1/completions,tokenizer=$TOKENIZER"
# end
case $2 in
  local-chat-completions) arguments=$chat ;;
  local-completions) arguments=$text ;;
esac
lm_eval $arguments --tasks space.yaml --apply_chat_template --log_samples --output_path results
cat results/*/samples_*.jsonl
