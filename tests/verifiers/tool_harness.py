"""A harness that calls tools, within the process of the tests: verifiers' own start uv."""

from __future__ import annotations

import json
from typing import Any

import verifiers.v1 as vf
from mcp import Client
from openai import AsyncOpenAI

__all__ = ["ToolHarness"]


class ToolHarness(vf.Harness[vf.HarnessConfig]):
    """Asks the model, carries out its calls, and goes on until a message calls nothing."""

    SUPPORTS_MCP = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        (url,) = mcp_urls.values()
        _, said = self.resolve_prompt(data)
        messages: list[Any] = [{"role": "user", "content": said}]
        async with (
            AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as model,
            Client(url) as tools,
        ):
            listed = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.input_schema,
                    },
                }
                for tool in (await tools.list_tools()).tools
            ]
            while True:
                answer = await model.chat.completions.create(
                    model=ctx.model, messages=messages, tools=listed
                )
                message = answer.choices[0].message
                messages.append(message.model_dump(exclude_none=True))
                for call in message.tool_calls or ():
                    arguments = json.loads(call.function.arguments)
                    result = await tools.call_tool(call.function.name, arguments)
                    text = result.content[0].text
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
                if not message.tool_calls:
                    return vf.ProgramResult(0, "", "")
