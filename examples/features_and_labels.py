"""Features and labels: what the features of a transcoder respond to and write, measured on texts and put into words.

    python examples/features_and_labels.py [DIRECTORY]

Records of some features are written to the directory, by default a temporary one. ``open-clt features --html pages``
writes those of all features, and pages that show them.
"""

import sys
import tempfile
from pathlib import Path

from open_clt import OpenCrossLayerTranscoder
from open_clt.config import FeatureRecordsConfig
from open_clt.data.contexts import pack_contexts
from open_clt.embedded.corpus import generate_texts
from open_clt.features.collecting.collect import collect_features
from open_clt.features.collecting.measured import feature_records
from open_clt.features.feature_files import read_feature_json, write_feature_json
from open_clt.features.labelling.automatic import label_records
from open_clt.features.labelling.background import background_of
from open_clt.features.labelling.given import with_labels
from open_clt.transcoders.feature import Feature

directory = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())

clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
model, transcoder = clt.language_model, clt.transcoder
for top in clt.get_top_features("The capital of the state containing Houston is", top_n=5):
    print(f"{top.feature} at {top.token!r}: {top.activation:.2f}")

texts = list(generate_texts(1000, seed=2_000_001))  # any list of strings
settings = FeatureRecordsConfig(context_length=40, from_start=True, max_tokens=10_000, top_examples=5)
collection = collect_features(model, transcoder, texts, settings)
# Automatic labels are rules that tell the contexts in which a feature is active from others; yours win over them.
some = feature_records(model, transcoder, collection, [Feature(0, 610), Feature(1, 312), Feature(2, 244)])
background = background_of(model, transcoder, pack_contexts(texts, model, 40, from_start=True))
labelled = list(label_records(with_labels(some, {Feature(2, 244): "say a capital"}), background))
for record in labelled:
    print(f"{record.feature}: {record.label.text}; active on {record.density:.1%} of the tokens")
folder = write_feature_json(labelled, directory / "features")
print(f"written to {folder}: {read_feature_json(folder, Feature(2, 244)).label.text}")
