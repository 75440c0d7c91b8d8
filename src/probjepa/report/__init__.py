"""Self-contained HTML pages of what was measured: sections of text, tables and pictures."""
