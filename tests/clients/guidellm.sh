# GuideLLM.
# packages: guidellm==0.8.1
# checks: stream wrong_key too_long
set -e
cd "$HOME"
printf '{"prompt": "%s"}\n' "$PROMPT" >prompts.jsonl

# settings
guidellm run --backend "kind=openai_http,target=$URL,api_key=$KEY,model=$MODEL" \
  --tokenizer "kind=hf_auto,model=$TOKENIZER" --data kind=json_file,path=prompts.jsonl \
  --profile kind=synchronous --constraint kind=max_requests,count=1 \
  --output kind=json,path=results.json
# end
cat results.json
