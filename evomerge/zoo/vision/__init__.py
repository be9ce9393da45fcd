"""A vision-language model and a text model of its language model's shape, to merge.

`python -m evomerge.zoo.vision.train` makes them in a minute and a half: `base`, a text model; `seeing`, a LLaVA of it
that answers in English about pictures; `japanese`, a fine-tune that knows all of the Japanese words. None of them was
shown a picture with a Japanese question.
"""
