"""The server that the MCP conformance suite asks for: its tools, resources and prompts. JSON-RPC 2.0 on stdio."""

from __future__ import annotations

import itertools
import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="
IMAGE = {"type": "image", "data": PNG, "mimeType": "image/png"}
PAUSE_S = 0.05
"""Between the notifications of a tool, as the suite asks for."""

SCHEMA_2020 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
    "additionalProperties": False,
}
DEFAULTS = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
CHOICES = [{"const": f"value{number}", "title": f"Choice {number}"} for number in (1, 2, 3)]
OPTIONS = ["option1", "option2", "option3"]
ENUMS = {
    "untitledSingle": {"type": "string", "enum": OPTIONS},
    "titledSingle": {"type": "string", "oneOf": CHOICES},
    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": ["One", "Two", "Three"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": OPTIONS}},
    "titledMulti": {"type": "array", "items": {"anyOf": CHOICES}},
}
USER = {"username": {"type": "string", "description": "Name"}, "email": {"type": "string", "description": "Address"}}
RESOURCES = {
    "test://static-text": {"mimeType": "text/plain", "text": "This is the content of the static text resource."},
    "test://static-binary": {"mimeType": "image/png", "blob": PNG},
    "test://watched-resource": {"mimeType": "text/plain", "text": "watched"},
}
PROMPTS = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
}


def text(value: str) -> Json:
    return {"type": "text", "text": value}


def resource(uri: str, mime_type: str, content: str) -> Json:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, "text": content}}


class Server:
    def __init__(self) -> None:
        self._writing = threading.Lock()
        self._numbers = itertools.count()
        self._answers: dict[int, queue.Queue[Json]] = {}
        self._tools: dict[str, Callable[[Json, Json], list[Json]]] = {
            "test_simple_text": lambda *_: [text("This is a simple text response for testing.")],
            "test_image_content": lambda *_: [IMAGE],
            "test_audio_content": lambda *_: [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}],
            "test_embedded_resource": lambda *_: [
                resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")
            ],
            "test_multiple_content_types": lambda *_: [
                text("Multiple content types test:"), IMAGE,
                resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
            ],
            "test_tool_with_logging": self._log,
            "test_tool_with_progress": self._progress,
            "test_sampling": self._sample,
            "test_elicitation": lambda arguments, _: self._elicit(arguments["message"], USER, list(USER)),
            "test_elicitation_sep1034_defaults": lambda *_: self._elicit("Please review", DEFAULTS, []),
            "test_elicitation_sep1330_enums": lambda *_: self._elicit("Please choose", ENUMS, []),
            "json_schema_2020_12_tool": lambda *_: [text("valid")],
        }  # fmt: skip

    def serve(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "method" not in message:
                self._answers[message["id"]].put(message)
            elif "id" in message:
                threading.Thread(target=self._respond, args=(message,), daemon=True).start()

    def _respond(self, request: Json) -> None:
        try:
            outcome = {"result": self._result(request["method"], request.get("params") or {})}
        except (KeyError, ValueError) as error:
            outcome = {"error": {"code": -32602, "message": f"invalid: {error}"}}
        self._send({"id": request["id"], **outcome})

    def _result(self, method: str, params: Json) -> Json:
        if method == "initialize":
            capabilities: Json = {name: {} for name in ("tools", "prompts", "logging", "completions")}
            capabilities["resources"] = {"subscribe": True}
            info = {"name": "conformance", "version": "1"}
            version = params["protocolVersion"]
            return {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info}
        results: dict[str, Callable[[], Json]] = {
            "ping": dict, "logging/setLevel": dict, "resources/subscribe": dict, "resources/unsubscribe": dict,
            "tools/list": lambda: {"tools": [self._tool(name) for name in [*self._tools, "test_error_handling"]]},
            "tools/call": lambda: self._call(params),
            "resources/list": lambda: {
                "resources": [{"uri": uri, "name": uri, "description": uri} for uri in RESOURCES]
            },
            "resources/templates/list": lambda: {
                "resourceTemplates": [{"uriTemplate": "test://template/{id}/data", "name": "data"}]
            },
            "resources/read": lambda: {"contents": [self._read(params["uri"])]},
            "prompts/list": lambda: {"prompts": [
                {"name": name, "description": name, "arguments": [{"name": a, "required": True} for a in arguments]}
                for name, arguments in PROMPTS.items()
            ]},
            "prompts/get": lambda: {"messages": [
                {"role": "user", "content": content}
                for content in self._prompt(params["name"], params.get("arguments") or {})
            ]},
            "completion/complete": lambda: {"completion": {"values": ["paris", "park"], "total": 2, "hasMore": False}},
        }  # fmt: skip
        if method not in results:
            raise ValueError(method)
        return results[method]()

    @staticmethod
    def _tool(name: str) -> Json:
        schema = SCHEMA_2020 if name.startswith("json_schema") else {"type": "object"}
        return {"name": name, "description": name, "inputSchema": schema}

    def _call(self, params: Json) -> Json:
        if params["name"] == "test_error_handling":
            return {"content": [text("This tool intentionally returns an error for testing")], "isError": True}
        return {"content": self._tools[params["name"]](params.get("arguments") or {}, params.get("_meta") or {})}

    @staticmethod
    def _read(uri: str) -> Json:
        if uri.startswith("test://template/"):
            ident = uri.split("/")[3]
            content = json.dumps({"id": ident, "templateTest": True, "data": f"Data for ID: {ident}"})
            return {"uri": uri, "mimeType": "application/json", "text": content}
        return {"uri": uri, **RESOURCES[uri]}

    @staticmethod
    def _prompt(name: str, arguments: Json) -> list[Json]:
        if name == "test_prompt_with_arguments":
            given = ", ".join(f"{key}='{arguments[key]}'" for key in PROMPTS[name])
            return [text(f"Prompt with arguments: {given}")]
        if name == "test_prompt_with_embedded_resource":
            embedded = resource(arguments["resourceUri"], "text/plain", "Embedded resource content for testing.")
            return [embedded, text("Please process the embedded resource above.")]
        if name == "test_prompt_with_image":
            return [IMAGE, text("Please analyze the image above.")]
        return [text("This is a simple prompt for testing.")]

    # -- tools that talk to the client ----------------------------------------------------------------------------

    def _log(self, arguments: Json, meta: Json) -> list[Json]:
        for data in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            self._send({"method": "notifications/message", "params": {"level": "info", "data": data}})
            time.sleep(PAUSE_S)
        return [text("logged")]

    def _progress(self, arguments: Json, meta: Json) -> list[Json]:
        for done in (0, 50, 100):
            if (token := meta.get("progressToken")) is not None:
                params = {"progressToken": token, "progress": done, "total": 100}
                self._send({"method": "notifications/progress", "params": params})
            time.sleep(PAUSE_S)
        return [text("done")]

    def _sample(self, arguments: Json, meta: Json) -> list[Json]:
        messages = [{"role": "user", "content": text(arguments["prompt"])}]
        answer = self._ask("sampling/createMessage", {"messages": messages, "maxTokens": 100})
        return [text(f"LLM response: {answer['result']['content']['text']}")]

    def _elicit(self, message: str, properties: Json, required: list[str]) -> list[Json]:
        schema = {"type": "object", "properties": properties, "required": required}
        answer = self._ask("elicitation/create", {"message": message, "requestedSchema": schema})["result"]
        content = json.dumps(answer.get("content"))
        return [text(f"Elicitation completed: action={answer['action']}, content={content}")]

    def _ask(self, method: str, params: Json) -> Json:
        ident = next(self._numbers)
        answers = self._answers[ident] = queue.Queue()
        self._send({"id": ident, "method": method, "params": params})
        return answers.get()

    def _send(self, message: Json) -> None:
        with self._writing:
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    Server().serve()
