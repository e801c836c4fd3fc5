"""The embedded data set: sticker scenes, their captions and an exact evaluator."""
