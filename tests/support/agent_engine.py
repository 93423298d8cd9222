"""A scripted engine for clients that use tools, in the forms of OpenAI and Anthropic.

Asked TOOL_PROMPT, it calls the first tool that it knows. Given a tool's result, it repeats that.
Otherwise it answers ANSWER.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from support.scripted_engine import DONE, ScriptedEngine, event

ANSWER = "Hello from the scripted engine."
MODEL = "scripted"
TOOL_PROMPT = "How is the weather in that city?"
RESULT = "Paris"  # only in the arguments: an answer has it if the tool was called
RESULTS = ("tool_result", "function_call_output")  # types of the parts that hold one
# What it passes to each tool: our scripts', Claude Code's and Codex's.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "weather": {"city": "Paris"},
    "Bash": {"command": "echo 21 degrees in Paris", "description": "Ask for the weather"},
    "exec_command": {"cmd": "echo 21 degrees in Paris"},
    "shell_command": {"command": "echo 21 degrees in Paris"},
}

Reply = tuple[str, dict[str, Any]] | str  # a call of a tool with its arguments, or text


def agent_engine() -> ScriptedEngine:
    """The engine, not running yet, with a context that fits the prompts of coding agents."""
    engine = ScriptedEngine(_script, models=[MODEL], context_length=400_000)
    engine.tokenize = lambda body: (200, {"count": len(json.dumps(body)) // 4})
    return engine


def _script(path: str, body: dict) -> Any:
    route = path.partition("?")[0]
    if route == "/v1/messages/count_tokens":
        return 200, {"input_tokens": len(json.dumps(body)) // 4}
    forms = {
        "/v1/chat/completions": (_chat, _chat_events),
        "/v1/messages": (_message, _message_events),
        "/v1/responses": (_response, _response_events),
    }
    if route not in forms:
        return 404, {"detail": "Not Found"}
    whole, events = forms[route]
    reply = _reply(body)
    return events(reply) if body.get("stream") else (200, whole(reply))


def _reply(body: dict) -> Reply:
    turns = body.get("messages") or body.get("input") or []
    for turn in turns if isinstance(turns, list) else []:
        parts = turn.get("content")
        for item in [turn, *(parts if isinstance(parts, list) else [])]:
            if item.get("role") == "tool" or item.get("type") in RESULTS:
                return f"The tool says: {item.get('output') or item.get('content')}"
    if TOOL_PROMPT in json.dumps(turns):
        for tool in body.get("tools") or []:
            name = tool.get("name") or tool.get("function", {}).get("name")
            if name in ARGUMENTS:
                return name, ARGUMENTS[name]
    return ANSWER


# -- OpenAI's chat ---------------------------------------------------------------------------------
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def _chat_delta(reply: Reply) -> tuple[dict, str]:
    if isinstance(reply, str):
        return {"content": reply}, "stop"
    function = {"name": reply[0], "arguments": json.dumps(reply[1])}
    call = {"id": "call_1", "type": "function", "index": 0, "function": function}
    return {"content": None, "tool_calls": [call]}, "tool_calls"


def _chat(reply: Reply) -> dict:
    delta, finish = _chat_delta(reply)
    choice = {"index": 0, "message": {"role": "assistant"} | delta, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}
    return head | {"choices": [choice], "usage": USAGE}


def _chat_events(reply: Reply) -> Iterator[bytes]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    delta, finish = _chat_delta(reply)
    for part, reason in (({"role": "assistant"} | delta, None), ({}, finish)):
        yield event(**head, choices=[{"index": 0, "delta": part, "finish_reason": reason}])
    yield event(**head, choices=[], usage=USAGE)
    yield DONE


# -- Anthropic's messages --------------------------------------------------------------------------
def _message(reply: Reply) -> dict:
    if isinstance(reply, str):
        block, reason = {"type": "text", "text": reply}, "end_turn"
    else:
        block = {"type": "tool_use", "id": "toolu_1", "name": reply[0], "input": reply[1]}
        reason = "tool_use"
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [block],
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 5},
    }


def _named_event(**fields: Any) -> bytes:
    return f"event: {fields['type']}\n".encode() + event(**fields)


def _message_events(reply: Reply) -> Iterator[bytes]:
    whole = _message(reply)
    start = whole | {"content": [], "stop_reason": None}
    if isinstance(reply, str):
        block, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": reply}
    else:
        block = whole["content"][0] | {"input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(reply[1])}
    yield _named_event(type="message_start", message=start)
    yield _named_event(type="content_block_start", index=0, content_block=block)
    yield _named_event(type="content_block_delta", index=0, delta=delta)
    yield _named_event(type="content_block_stop", index=0)
    end = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield _named_event(type="message_delta", delta=end, usage=whole["usage"])
    yield _named_event(type="message_stop")


# -- OpenAI's Responses ----------------------------------------------------------------------------
def _response_item(reply: Reply) -> dict:
    if isinstance(reply, str):
        part = {"type": "output_text", "text": reply, "annotations": []}
        item = {"type": "message", "role": "assistant", "id": "msg_1", "content": [part]}
    else:
        name, arguments = reply[0], json.dumps(reply[1])
        item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": name}
        item["arguments"] = arguments
    return item | {"status": "completed"}


def _response(reply: Reply) -> dict:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": MODEL,
        "output": [_response_item(reply)],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 8,
        },
    }


def _response_events(reply: Reply) -> Iterator[bytes]:
    whole, item = _response(reply), _response_item(reply)
    place = {"item_id": item["id"], "output_index": 0}
    begun = item | {"status": "in_progress"} | ({"content": []} if "content" in item else {})
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": whole | {"status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
    ]
    if isinstance(reply, str):
        empty = item["content"][0] | {"text": ""}
        place["content_index"] = 0
        events += [
            {"type": "response.content_part.added", **place, "part": empty},
            {"type": "response.output_text.delta", **place, "delta": reply, "logprobs": []},
            {"type": "response.output_text.done", **place, "text": reply, "logprobs": []},
            {"type": "response.content_part.done", **place, "part": item["content"][0]},
        ]
    events += [
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    for number, fields in enumerate(events):
        yield _named_event(**fields, sequence_number=number)
