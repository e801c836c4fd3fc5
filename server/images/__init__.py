"""Pictures from outside: decoded within limits, fetched from allowed hosts."""
