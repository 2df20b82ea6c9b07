"""Training and evaluation: a cross-layer transcoder of the embedded model, measured on text that it has not seen.

    python examples/train_and_evaluate.py [DIRECTORY]

The transcoder, its training curves and its report are written to the directory, by default a temporary one. The
example takes about half a minute on two CPU cores.
"""

import sys
import tempfile
from pathlib import Path

from open_clt import OpenCrossLayerTranscoder
from open_clt.config import BatchTopKConfig
from open_clt.embedded.corpus import generate_texts
from open_clt.embedded.held_out import HeldOutText
from open_clt.evaluation.report import layer_table, report
from open_clt.evaluation.report_file import save_report

directory = Path(sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp())

clt = OpenCrossLayerTranscoder("embedded", num_features=256, nonlinearity=BatchTopKConfig(k=16))
result = clt.train_transcoder(
    generate_texts(1000, seed=1_000_001),  # any list of strings
    batch_size=512,  # tokens
    num_epochs=4,
    learning_rate=2e-3,
    context_length=40,
    from_start=True,  # the sentences are short, so that each context begins with one
    output_dir=directory / "transcoder",
)
print(f"{result.steps} steps, {result.tokens:,} tokens, {result.seconds:.0f} seconds")

contexts = HeldOutText(max_tokens=4000, seed=2).contexts(clt.language_model)
prompts = ["The capital of the state containing Dallas is"]
measured = report(clt.replacement_model(), contexts, name="mine", prompts=prompts)
print(layer_table(measured))
print(f"the replacement model finds the same token likeliest at {measured.evaluation.logits.top1_agreement:.0%}")
save_report(measured, directory / "report")
print(f"written to {directory}")
