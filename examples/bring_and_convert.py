"""Layouts: a transcoder is written for other tools, and a transcoder in the layout of another tool is used as it is.

    python examples/bring_and_convert.py [DIRECTORY]

The converted transcoder is written to the directory, by default a temporary one. Wherever a transcoder is read, a name
on the Hugging Face hub, such as ``mntss/clt-gemma-2-2b-426k``, can take the place of a directory.
"""

import sys
import tempfile
from pathlib import Path

from open_clt import OpenCrossLayerTranscoder, SparseEncoder, load_transcoder
from open_clt.embedded.held_out import HeldOutText
from open_clt.evaluation.conversion import convert_transcoder
from open_clt.transcoders.formats.circuit_tracer_writer import save_circuit_tracer

directory = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())

# circuit-tracer reads JumpReLU; the thresholds that take the place of BatchTopK are fitted to a text.
clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
contexts = HeldOutText(max_tokens=4000).contexts(clt.language_model)
converted = convert_transcoder(clt.language_model, clt.transcoder, contexts)
print(converted.summary())
published = save_circuit_tracer(converted.transcoder, directory / "published")

# The other side: a layout is recognised by its files, and a transcoder that does not fit in memory stays in them.
theirs = OpenCrossLayerTranscoder(clt.language_model, transcoder=published)
print(theirs.attribute("The capital of the state containing Dallas is").scores())
print(load_transcoder(published, memory_limit=1_000_000))

# Hidden states of another program need only the encoders.
states = clt.language_model.capture(clt.language_model.tokenize("The capital of Texas is")[None], "hook_resid_mid")
encoded = SparseEncoder(published, top_k=5).encode_layer(2, states.inputs[:, :, 2])
print("strongest features of layer 2 at the last token:", encoded.indices[0, -1].tolist())
