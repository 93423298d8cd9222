"""vLLM's legacy server, for `ENGINE_MODULE=support.legacy_server`. vLLM removed its own after 0.24.

POST /generate takes {"prompt", "stream", ...sampling} and returns {"text": [prompt + answer]}. A
stream is one such JSON object per line, each with the whole text so far. There is GET /health, but
no /v1 and no API key.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from uuid import uuid4

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from vllm import AsyncEngineArgs, SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM


def main() -> None:
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    flags = parser.parse_args()
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(flags))

    async def health(request: Request) -> Response:
        await llm.check_health()
        return Response()

    async def generate(request: Request) -> Response:
        fields = await request.json()
        prompt, stream = fields.pop("prompt"), fields.pop("stream", False)

        async def lines() -> AsyncIterator[str]:
            async for output in llm.generate(prompt, SamplingParams(**fields), uuid4().hex):
                texts = [prompt + choice.text for choice in output.outputs]
                yield json.dumps({"text": texts}) + "\n"

        if stream:
            return StreamingResponse(lines())
        last = [line async for line in lines()][-1]
        return JSONResponse(json.loads(last))

    app = Starlette(
        routes=[Route("/health", health), Route("/generate", generate, methods=["POST"])]
    )
    uvicorn.run(app, host=flags.host, port=flags.port, log_level="warning")


if __name__ == "__main__":
    main()
