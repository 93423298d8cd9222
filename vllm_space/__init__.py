"""A Hugging Face Space that serves one LLM with vLLM: a chat page and an OpenAI-compatible API on one port."""
