"""Wordings of a request for a description, and other requests that get one all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rediff_model.chat_template import DEFAULT_QUESTION, Turn, asked, turn_with_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from rediff_model.chat_template import Question

HELD_OUT: tuple[str, ...] = (
    "Describe this image.",
    "caption this",
    "alt text please",
    "Please describe the image in detail",
    "What's in this image?",
    "what do you see",
    "Tell me everything about this picture.",
    "Give me a thorough account of what the photo shows.",
    "describe",
    "Caption:",
    "Could you walk me through this image, please?",
    "I can't see the picture. What is on it?",
    "Write one paragraph about the image for a catalogue.",
    "Describe the scene, object by object.",
    "DESCRIBE THE IMAGE",
    "pls describe pic",
    "What is shown here, and where?",
    "Provide a dense caption.",
    "Summarise the visual content.",
    "How would you explain this picture to a blind person?",
    "Generate a caption for the attached file.",
    "Look at the picture and say what is there!",
    "What objects are visible and how are they arranged?",
    "image description",
    "Explain what's going on here.",
    "Can you caption this for my blog?",
    "List what you see, with colours and sizes.",
    "Describe the image below in your own words, leaving nothing out.",
    "Write a poem about this.",
    "Hi! What have we got here?",
)
"""Wordings that no training ever sees, for evaluation."""

_VERBS = (
    "describe", "caption", "explain", "describe in full", "put into words", "report", "depict",
    "write about", "write a caption for", "write a description of", "give a description of",
    "give a detailed description of", "give me a summary of", "make a caption of", "talk about",
    "tell me about", "say what is in", "say what you see in", "tell me what is in",
    "provide a caption for", "provide a detailed description of", "produce alt text for",
    "write alt text for", "generate a long caption for", "analyse", "inspect", "go through",
    "list everything in", "name all that is in", "look closely at",
)  # fmt: skip
_THINGS = (
    "the image", "this image", "the picture", "this picture", "the photo", "this photo", "it",
    "the scene", "this scene", "the attached image", "the image above", "this screenshot", "this",
    "what is shown", "the picture I sent", "my picture", "the illustration", "this drawing",
)  # fmt: skip
_MANNERS = (
    "in detail", "in great detail", "briefly", "carefully", "as well as you can", "precisely",
    "from left to right", "in a few sentences", "in one paragraph", "completely", "for me",
    "for a screen reader", "for a data set", "for a child", "with all objects", "with positions",
    "with colours", "in plain English", "step by step", "accurately", "without guessing",
    "for somebody who cannot see it", "so that it could be drawn again", "with every detail",
)  # fmt: skip
_OPENERS = (
    "please", "can you", "could you", "would you please", "I want you to", "I need you to", "now",
    "hey,", "hello,", "you are an expert annotator;", "in this task,", "help me:", "okay,",
    "kindly", "your job:", "as an assistant,", "quick question: can you", "thanks,", "first,",
)  # fmt: skip
_WHOLE = (
    "what is this", "what is it", "what's this", "what is in the picture", "what can you see here",
    "what does the image show", "what is on the picture", "what is happening in this picture",
    "what are the things in this image", "what do we have here", "what does this depict",
    "which objects are in the image", "how does this picture look", "what would you call this",
    "what stickers are there", "where is everything", "what am I looking at", "alt text",
    "caption", "a caption", "detailed caption", "dense caption, please", "description",
    "description please", "summary", "image caption", "picture?", "go", "hi", "hello", "test", "ok",
    "?", "...", "caption it", "details", "more details please", "what", "explain", "look",
    "write a story about this", "translate this", "make it funny", "is this art",
    "who made this", "how many people are there", "what time is it", "what is the weather",
    "write a haiku", "sing", "solve this", "what should I buy", "rate this from 1 to 10",
    "extract the text", "what does the text say", "return JSON", "answer in French",
    "beschreibe das Bild", "décris cette image", "describe la imagen", "opisz obraz",
    "describe 🙂", "<image>", "prompt: describe", "task: captioning", "Q: what is it? A:",
)  # fmt: skip
_ENDS = ("", "", ".", ".", "!", "?", " please", ", please", ", please.", " thanks", "\n", " :)")
_SYSTEMS = (
    "You are a helpful assistant.", "You caption images.", "Answer briefly.", "Be precise.",
    "You are a captioning model. Describe every picture that you are given in full.",
    "You are ChatGPT, a large language model.", "Always answer in English.", "",
    "Describe images for people who cannot see them.", "You are an annotator of a data set.",
)  # fmt: skip


def draw_prompt(rng: np.random.Generator) -> Question:
    """A request for training, with a system message or the text before the picture at times."""
    text = _text(rng)
    while _key(text) in _HELD_OUT_KEYS and text != DEFAULT_QUESTION:
        text = _text(rng)
    before, system = rng.random() < 0.2, rng.random() < 0.15
    turns = (turn_with_picture(text, ""),) if before else asked(text)
    return (Turn("system", _pick(_SYSTEMS, rng)), *turns) if system else turns


def _text(rng: np.random.Generator) -> str:
    if rng.random() < 0.1:
        return DEFAULT_QUESTION
    if rng.random() < 0.35:
        text = _pick(_WHOLE, rng)
    else:
        opener = f"{_pick(_OPENERS, rng)} " if rng.random() < 0.4 else ""
        manner = f" {_pick(_MANNERS, rng)}" if rng.random() < 0.5 else ""
        text = f"{opener}{_pick(_VERBS, rng)} {_pick(_THINGS, rng)}{manner}"
        if rng.random() < 0.1:
            text += f" and {_pick(_VERBS, rng)} {_pick(_THINGS, rng)}"
    case = rng.random()
    if case < 0.5:
        text = text[0].upper() + text[1:]
    elif case > 0.95:
        text = text.upper()
    return text + _pick(_ENDS, rng)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _key(text: str) -> str:
    """Letters alone, so that a full stop or a capital does not make another wording."""
    return "".join(filter(str.isalpha, text.lower()))


_HELD_OUT_KEYS = frozenset(map(_key, HELD_OUT))
