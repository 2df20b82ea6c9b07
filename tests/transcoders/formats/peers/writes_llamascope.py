"""Llama Scope's own package writes a random transcoder, inputs and its outputs; its Python runs this, not a test.

python writes_llamascope.py FOLDER SETTINGS      settings of CLTConfig as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from llamascopium.models.clt import CLTConfig, CrossLayerTranscoder
from safetensors.torch import save_file

N_LAYERS, D_MODEL = 3, 4
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(0)
config = CLTConfig(
    d_model=D_MODEL,
    expansion_factor=2,
    top_k=4,
    hook_points_in=[f"blocks.{layer}.hook_resid_mid" for layer in range(N_LAYERS)],
    hook_points_out=[f"blocks.{layer}.hook_mlp_out" for layer in range(N_LAYERS)],
    dtype=torch.float32,
    device="cpu",
    **settings,
)
model = CrossLayerTranscoder(config)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_()
model.set_dataset_average_activation_norm({hook: 1.0 + i for i, hook in enumerate(config.associated_hook_points)})
model.save_pretrained(folder)
config.save_hyperparameters(folder)
inputs = torch.randn(20, N_LAYERS, D_MODEL)


def factors(hooks: list[str]) -> torch.Tensor:
    return torch.stack([model.compute_norm_factor(inputs[:, layer], hook) for layer, hook in enumerate(hooks)])[:, None]


with torch.no_grad():
    written = model.decode(model.encode(inputs * factors(config.hook_points_in)), batch_first=True)
    outputs = written / factors(config.hook_points_out)
save_file({"inputs": inputs, "outputs": outputs.contiguous()}, folder / "results")
