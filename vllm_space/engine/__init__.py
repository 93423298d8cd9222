"""The process that starts vLLM and keeps it running.

start.sh runs it as `python -m vllm_space.engine`. It knows nothing of Gradio, and
the page knows nothing of it: they share a folder (run_dir.py).
"""
