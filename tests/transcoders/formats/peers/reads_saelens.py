"""SAELens itself loads the transcoders in the folders, and writes inputs and their outputs.

python reads_saelens.py FOLDER SETTINGS      the number of layers and the width as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from safetensors.torch import save_file

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(0)
inputs = 3 * torch.randn(20, settings["n_layers"], settings["d_model"])
outputs: list[torch.Tensor] = []
for layer in range(settings["n_layers"]):
    model = SAE.load_from_disk(folder / f"layer_{layer}")
    assert model.cfg.architecture() == settings["architecture"]
    assert model.cfg.metadata.hook_name == f"blocks.{layer}.{settings['input_hook']}"
    with torch.no_grad():
        outputs.append(model(inputs[:, layer]))
save_file({"inputs": inputs, "outputs": torch.stack(outputs, dim=1)}, folder / "results")
