"""SAELens itself writes random transcoders per layer, inputs and their outputs; its Python runs this, not a test.

python writes_saelens.py FOLDER SETTINGS      the architecture as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file

N_LAYERS, D_MODEL, N_FEATURES = 3, 4, 8
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(0)
inputs = torch.randn(20, N_LAYERS, D_MODEL)
transcoder_class, config_class = get_sae_class(settings["architecture"])
outputs: list[torch.Tensor] = []
for layer in range(N_LAYERS):
    hooks = {"hook_name": f"blocks.{layer}.hook_resid_mid", "hook_name_out": f"blocks.{layer}.hook_mlp_out"}
    config = config_class(
        d_in=D_MODEL, d_out=D_MODEL, d_sae=N_FEATURES, apply_b_dec_to_input=False, metadata=SAEMetadata(**hooks)
    )
    model = transcoder_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_model(folder / f"layer_{layer}")
    with torch.no_grad():
        outputs.append(model(inputs[:, layer]))
save_file({"inputs": inputs, "outputs": torch.stack(outputs, dim=1)}, folder / "results")
