"""Feature records of a whole transcoder, measured in one pass over a text with memory that the text does not change.

``collect.py`` runs the language model and the encoders, and adds each batch of contexts to a ``FeatureCollection``.
The collection holds, for every feature of the transcoder:

    ExampleTable           the contexts with the highest peaks, and a random sample of all contexts (``examples.py``)
    ActivationHistograms   counts of activations in equal bins, whose range doubles as needed (``histograms.py``)
    TokenCounts            counts of tokens in hashed buckets: a count-min sketch (``tokens.py``)
    ActivitySketch         a random projection of the activity over tokens, for cosines of features (``activity.py``)

All of them are the same for every order of the contexts, and can be merged, so several processes can share a text.
``measured.py`` turns a collection into records.
"""
