"""Verification: a group of features gets a name, the name becomes claims, and the claims are tested on other text.

    python examples/verify_a_circuit.py [DIRECTORY]

The circuit is written to the directory, by default a temporary one. ``open-clt verify`` reads the file as well.
"""

import sys
import tempfile
from pathlib import Path

from open_clt import OpenCrossLayerTranscoder
from open_clt.circuits.circuit import Circuit
from open_clt.circuits.encoded_text import EncodedText
from open_clt.circuits.verify import make_circuit, verify
from open_clt.embedded.held_out import HeldOutText

directory = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())

clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
model, transcoder = clt.language_model, clt.transcoder


def encoded(tokens: int, seed: int) -> EncodedText:
    """Generated sentences with their active features."""
    return EncodedText(model, transcoder, HeldOutText(max_tokens=tokens, seed=seed).contexts(model))


# The prompt names neither the state nor anything of it. The name of the group between city and answer is found.
graph = clt.attribute("The capital of the state containing Houston is")
circuit = make_circuit(model, transcoder, graph, encoded(80_000, seed=0), encoded(10_000, seed=1000))
path = circuit.save(directory / "circuit.yaml")
print(f"{', '.join(supernode.name for supernode in circuit.supernodes)}; written to {path}")

report = verify(Circuit.load(path), model, transcoder, encoded(10_000, seed=2000))
print(report.table())
print("all claims hold" if report.passed else "a claim fails")
