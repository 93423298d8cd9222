"""The engine's side of a Space: the process beside the page that starts vLLM and keeps it running.

`python -m vllm_space.engine` runs it; start.sh does. Knows nothing of Gradio, and the page knows nothing of it: they
share a folder (run_dir.py).
"""
