"""Replacement and steering: features in place of MLPs, text that is written with them, and features that are changed.

    python examples/replace_and_steer.py

The example prints its results and writes nothing.
"""

from open_clt import Intervention, OpenCrossLayerTranscoder, ReplacementModel, intervene
from open_clt.replacement.interventions.intervene import generate_patched
from open_clt.replacement.interventions.intervention import Iterative, interventions_on

clt = OpenCrossLayerTranscoder.from_pretrained("embedded")
prompt = "The capital of the state containing Dallas is"

replacement = clt.replacement_model()
print(replacement.compare(prompt).summary())

# Steering: feature 244 of layer 2 stands for "say a capital"; its largest natural activation is 2.
flower = "The flower of the state containing Dallas is"
for value in (0.0, 6.0):
    change = Intervention(layer=2, position=-1, feature=244, value=value)
    print(f"L2/244 = {value:g}:", generate_patched(replacement, flower, change, max_new_tokens=3).text)

# Ablation in the language model itself: with error correction, the model is exact until a feature is changed.
exact = ReplacementModel(clt.language_model, clt, error_correction=True)
capital = ["0:2:634", "0:2:610", "0:2:108", "0:2:113", "0:2:382"]  # features of "capital": layer, position, feature
record = intervene(exact, prompt, interventions_on(capital, value=0.0), Iterative())
print(record.summary())
