"""The page: Gradio only, one file per tab.

Knows no sockets, no processes and no environment variables; only web.py imports it.
"""
