"""The page: Gradio only, one file a tab. Knows no sockets, no processes and no environment; only web.py imports it."""
