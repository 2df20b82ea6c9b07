"""BluelightAI's package inference-clt reads a transcoder and writes its outputs; its Python runs this, not a test.

python computes_bluelight.py FOLDER SETTINGS     SETTINGS is JSON with the width d_model and the number of layers
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from inference_clt import InferenceCLT
from safetensors.torch import save_file

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.manual_seed(0)
inputs = torch.randn(20, settings["n_layers"], settings["d_model"])
with torch.no_grad():
    _, outputs = InferenceCLT.load_from_disk(folder).reconstruct(inputs.transpose(0, 1).contiguous())
save_file({"inputs": inputs, "outputs": outputs.transpose(0, 1).contiguous()}, folder / "results")
