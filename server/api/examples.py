"""Examples in the OpenAPI document: requests that work as they stand, and what they get."""

from __future__ import annotations

from typing import Any, Final

PICTURE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgAQMAAABJtOi3AAAABlBMVEXw9PjWKCivfyfRAAAAP0lEQVR4"
    "2mNgIBawP2BgYuAQYGBiMOBhYGJgYGBgYnBgYmBg+P8fxsUkGBjq/zEwMRz4B+Pyf2BgYvjxgWhbAagk"
    "CbYcG5wGAAAAAElFTkSuQmCC"
)
"""A red disc, 32 pixels wide: a PNG in base64."""

_IMAGE: Final = {"base64": PICTURE}
_CONTENT: Final = [
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
]

REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "/caption": {
        "caption": {"summary": "A caption", "value": {"image": _IMAGE}},
        "settings": {
            "summary": "Fewer steps, with each token's confidence",
            "value": {
                "image": _IMAGE,
                "sampling": {"preset": "adaptive", "seed": 1},
                "return_tokens": True,
            },
        },
        "stream": {
            "summary": "Every step as a server-sent event",
            "value": {"image": _IMAGE, "stream": True},
        },
        "template": {
            "summary": "Fill the holes of a template",
            "value": {
                "image": _IMAGE,
                "template": "A picture of {3}. The backdrop is {plain|striped|dotted}.",
            },
        },
        "alternatives": {
            "summary": "With the three likeliest tokens of each place",
            "value": {"image": _IMAGE, "alternatives": 3},
        },
    },
    "/refine": {
        "refine": {
            "summary": "Revise a caption, and see what changed",
            "value": {
                "image": _IMAGE,
                "draft": "A blue disc on a white background.",
                "return_diff": True,
            },
        },
    },
    "/v1/chat/completions": {
        "chat": {
            "summary": "The default question",
            "value": {"messages": [{"role": "user", "content": _CONTENT}]},
        },
        "template": {
            "summary": "Fill the holes of a template",
            "value": {
                "messages": [{"role": "user", "content": _CONTENT}],
                "template": "The backdrop is {plain|striped|dotted}.",
            },
        },
        "stream": {
            "summary": "Streamed, with the usage at the end",
            "value": {
                "messages": [{"role": "user", "content": _CONTENT}],
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        },
    },
}
"""Bodies by route and name."""

_CAPTION: Final = {
    "id": "cap-5a1c0f3e9b7d4a62",
    "model": "embedded",
    "caption": "A red disc on a white background.",
    "finish_reason": "stop",
    "usage": {"image_tokens": 324, "prompt_tokens": 342, "caption_tokens": 9},
    "steps": 4,
    "revisions": 1,
    "timing": {
        "decode": 0.004,
        "vision": 0.131,
        "queue": 0.002,
        "generate": 0.271,
        "total": 0.41,
    },
}

ANSWERS: Final[dict[str, dict[str, Any]]] = {
    "/caption": _CAPTION,
    "/refine": _CAPTION,
    "/v1/chat/completions": {
        "id": "chatcmpl-5a1c0f3e9b7d4a62",
        "object": "chat.completion",
        "created": 1796083200,
        "model": "embedded",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "A red disc on a white background.",
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 342, "completion_tokens": 9, "total_tokens": 351},
    },
}
"""Answers with status 200 by route."""

STREAMS: Final[dict[str, str]] = {
    "/caption": (
        'event: step\ndata: {"step": 1, "steps": 4, "masked": 5, "text": "A red ▒ ▒ ▒", '
        '"changed": []}\n\nevent: done\ndata: {"id": "cap-5a1c0f3e9b7d4a62", …}\n\n'
    ),
    "/v1/chat/completions": (
        'data: {"object": "chat.completion.chunk", "choices": [{"index": 0, '
        '"delta": {"content": "A red disc on a white background."}}], …}\n\ndata: [DONE]\n\n'
    ),
}
STREAMS["/refine"] = STREAMS["/caption"]

ERROR: Final = {
    "error": {
        "message": "give either base64 or url",
        "type": "invalid_request_error",
        "param": "image",
        "code": "invalid_value",
    }
}
UNAUTHORIZED: Final = {
    "error": {
        "message": "an API key is needed: send the header Authorization: Bearer KEY",
        "type": "authentication_error",
        "param": None,
        "code": "invalid_api_key",
    }
}
