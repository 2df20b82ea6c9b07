"""The package decode-clt writes a random transcoder, inputs and its outputs; its Python runs this, not a test.

python writes_decode_clt.py FOLDER SETTINGS      settings of CLTConfig as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from clt.config import CLTConfig
from clt.models.clt import CrossLayerTranscoder
from safetensors.torch import save_file

N_LAYERS, D_MODEL = 3, 4
folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(0)
config = CLTConfig(
    num_features=8,
    num_layers=N_LAYERS,
    d_model=D_MODEL,
    model_name="gpt2",
    mlp_input_template="transformer.h.{}.ln_2.input",
    mlp_output_template="transformer.h.{}.mlp.output",
    **settings,
)
model = CrossLayerTranscoder(config, process_group=None, device=torch.device("cpu"))
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "feature_offset" not in name:  # OpenCLT reads offsets of zero only
            parameter.normal_()
inputs = torch.randn(20, N_LAYERS, D_MODEL)
with torch.no_grad():
    written = model({layer: inputs[:, layer] for layer in range(N_LAYERS)})
folder.mkdir(parents=True, exist_ok=True)
config.to_json(str(folder / "cfg.json"))
save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "clt.safetensors")
save_file(
    {"inputs": inputs, "outputs": torch.stack([written[layer] for layer in range(N_LAYERS)], 1)}, folder / "results"
)
