"""A stand-in for a vLLM server, over HTTP: what was handed to it decides what it draws."""

import contextlib
import json
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from harken.config import LoraConfig
from harken.lm.load import load_model
from harken.lm.sample import sample
from harken.lm.trunk import Trunk
from harken.records import SamplingSettings
from tests.policy import material


class EngineOnServer:
    """Stands for a vLLM server: it draws with Harken's own sampler from what was handed to it through files."""

    def __init__(self, model: Path | str) -> None:
        self.trunk = self._fresh(model)
        self.requests: list[tuple[str, Any]] = []
        self.adapters: dict[str, dict[str, torch.Tensor]] = {}
        self.change: dict[str, Any] = {}
        self.refuse: dict[str, tuple[int, str]] = {}
        self.lock = threading.Lock()

    @staticmethod
    def _fresh(model: Path | str, *, adapters: bool = True) -> Trunk:
        trunk = Trunk(load_model(model, compute=material.COMPUTE, chat=material.RAW))
        if adapters:
            trunk.add_role("served", LoraConfig(), seed=9)
        return trunk

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        with self.lock:  # one trunk, whose roles are switched
            self.requests.append((path, body))
            if path in self.refuse:
                code, text = self.refuse[path]
                return code, {"error": {"message": text}}
            match path:
                case "/v1/models":
                    return 200, {"data": [{"id": "base"}, {"id": "other"}]}
                case "/v1/load_lora_adapter":
                    self.adapters[body["lora_name"]] = load_file(Path(body["lora_path"]) / "adapter_model.safetensors")
                    return 200, "Success"
                case "/v1/unload_lora_adapter":
                    del self.adapters[body["lora_name"]]
                    return 200, "Success"
                case "/collective_rpc":
                    assert body["method"] == "reload_weights"
                    tensors = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
                    self.trunk = self._fresh(self.trunk.source, adapters=False)
                    self.trunk.model.load_state_dict(tensors)  # strict: all names are there, those of tied weights too
                    return 200, {"results": [None]}
                case "/reset_prefix_cache":
                    return 200, {"success": True} | self.change
                case "/v1/completions":
                    return 200, self.complete(body)
        return 404, {"detail": "Not Found"}

    def complete(self, body: Any) -> Any:
        role = None
        if body["model"] != "base":
            role = "served"
            tensors = self.adapters[body["model"]]
            plain = {name.removeprefix("base_model.model.").removesuffix(".weight"): t for name, t in tensors.items()}
            self.trunk.load_state(role, plain)
        settings = SamplingSettings(temperature=body["temperature"], max_new_tokens=body["max_tokens"])
        drawn = sample(self.trunk, role, [body["prompt"]], settings, seeds=[body["seed"]])[0]
        choice = {
            "token_ids": drawn.token_ids,
            "logprobs": {"token_logprobs": drawn.logprobs},
            "finish_reason": drawn.finish_reason,
        }
        return {"choices": [choice | self.change]}

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


@contextlib.contextmanager
def serving(stand_in: EngineOnServer) -> Generator[str]:
    """Serve it on a free port of this machine and give the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: Any) -> None:
            code, found = stand_in.answer(self.path, body)
            data = json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(found, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            del format, arguments

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
