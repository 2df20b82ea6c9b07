"""EleutherAI's package sparsify writes one sparse coder per layer and its outputs; its Python runs this, not a test.

python writes_sparsify.py FOLDER SETTINGS     SETTINGS is JSON with settings of the config of sparsify
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from sparsify import SparseCoder, SparseCoderConfig

N_LAYERS, D_MODEL = 3, 4
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(0)
config = SparseCoderConfig(num_latents=6, k=3, **settings)
inputs = torch.randn(20, N_LAYERS, D_MODEL)
outputs: list[torch.Tensor] = []
with torch.no_grad():
    for layer in range(N_LAYERS):
        coder = SparseCoder(D_MODEL, config)
        for parameter in coder.parameters():
            parameter.normal_()
        coder.save_to_disk(folder / f"layers.{layer}.mlp")
        outputs.append(coder(inputs[:, layer]).sae_out)
save_file({"inputs": inputs, "outputs": torch.stack(outputs, dim=1)}, folder / "results")
