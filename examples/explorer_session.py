"""The explorer's sessions: groups that a program made are opened in the browser, and those of a person in Python.

    python examples/explorer_session.py session.json
    open-clt explore --open          # then choose Open, and the file

The session is written to the path, by default into a temporary directory.
"""

import sys
import tempfile
from pathlib import Path

from open_clt import OpenCrossLayerTranscoder, load_session, save_session
from open_clt.embedded import start_graph
from open_clt.explorer.session.session import Group, Session
from open_clt.explorer.session.session_file import SavedSession
from open_clt.explorer.traces import START, Trace
from open_clt.transcoders.formats.fingerprint import fingerprint

path = Path(sys.argv[1] if sys.argv[1:] else f"{tempfile.mkdtemp()}/session.json")

clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
members = {
    "capital": ("0:2:634", "0:2:610", "0:2:108", "0:2:113", "0:2:382"),  # layer, position and number of each feature
    "Dallas": ("0:7:226", "0:7:275", "0:7:158", "0:7:465", "0:7:175"),
    "Texas": ("4:8:128", "4:8:462"),
}
session = Session(
    graph=START,  # the graph that the explorer shows first, of "The capital of the state containing Dallas is"
    pins=tuple(feature for group in members.values() for feature in group),
    groups=tuple(Group(name=name, members=features) for name, features in members.items()),
    labels={"L4/128": "Texas", "L2/244": "say a capital"},
)
save_session(SavedSession(session, Trace(key=START, graph=start_graph()), fingerprint(clt.transcoder)), path)

saved = load_session(path)  # reads a session that the browser stored in the same way
circuit = saved.circuit
for target, source, weight in zip(*circuit.edges, strict=True):
    if circuit.groups[source].label in members:
        print(f"{circuit.groups[source].label} → {circuit.groups[target].label}: {weight:+.2f}")
print(f"written to {path}")
