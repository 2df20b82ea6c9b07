"""circuit-tracer's side of the attribution benchmark, which runs in an environment with PyPI's ``circuit-tracer``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from attribution_process import measured, serve
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from safetensors.torch import save_file
from transformers import AutoTokenizer, GPT2LMHeadModel


def load() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Load the model and the transcoder; returns the function that answers requests."""
    folder, device = sys.argv[1], torch.device(sys.argv[2])
    os.chdir(folder)  # circuit-tracer reads the model "gpt2" from the folder of that name in the working directory
    torch.set_float32_matmul_precision("highest")
    # Decoders are in memory on both sides, so that the comparison does not include reading them, or in their files.
    stored = "stored" in sys.argv[3:]
    transcoder = load_clt("transcoder", device=device, dtype=torch.float32, lazy_decoder=stored)
    model = ReplacementModel.from_pretrained_and_transcoders(
        "gpt2", transcoder, device=device, dtype=torch.float32,
        hf_model=GPT2LMHeadModel.from_pretrained("gpt2"), tokenizer=AutoTokenizer.from_pretrained("gpt2"),
    )  # fmt: skip

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        batch = {} if request["batch_size"] is None else {"batch_size": request["batch_size"]}

        def call() -> Any:
            return attribute(torch.tensor(request["prompt"]), model, max_feature_nodes=request["budget"], **batch)

        graph, run = measured(call, device)
        if request["save"]:
            tensors = {
                "features": graph.active_features[graph.selected_features],
                "logits": graph.logit_token_ids,
                "adjacency": graph.adjacency_matrix,
            }
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, request["save"])
        return {**run._asdict(), "active": len(graph.active_features)}

    return answer


if __name__ == "__main__":
    serve(load)
