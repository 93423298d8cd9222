"""A Hugging Face Space that serves a chat page and an OpenAI-compatible API on top of vLLM."""

__version__ = "1.2.0"  # also the top entry of CHANGELOG.md
