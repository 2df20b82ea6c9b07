"""Llama Scope's own package writes random transcoders per layer, inputs and their outputs; its Python runs this.

python writes_llamascope_layers.py FOLDER SETTINGS      settings of SAEConfig as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from llamascopium.models.sae import SAEConfig, SparseAutoEncoder
from safetensors.torch import save_file

N_LAYERS, D_MODEL = 3, 4
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(0)
inputs = torch.randn(20, N_LAYERS, D_MODEL)
outputs: list[torch.Tensor] = []
for layer in range(N_LAYERS):
    hook_in, hook_out = f"blocks.{layer}.hook_resid_mid", f"blocks.{layer}.hook_mlp_out"
    config = SAEConfig(
        d_model=D_MODEL,
        expansion_factor=2,
        top_k=4,
        hook_point_in=hook_in,
        hook_point_out=hook_out,
        dtype=torch.float32,
        device="cpu",
        **settings,
    )
    model = SparseAutoEncoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.set_dataset_average_activation_norm({hook_in: 1.5 + layer, hook_out: 2.5 + layer})
    place = folder / f"layer{layer}_transcoder_2x_k4"
    model.save_pretrained(place)
    config.save_hyperparameters(place)
    x = inputs[:, layer]
    with torch.no_grad():
        written = model(x * model.compute_norm_factor(x, hook_in))
    outputs.append(written / model.compute_norm_factor(x, hook_out))
save_file({"inputs": inputs, "outputs": torch.stack(outputs, dim=1)}, folder / "results")
