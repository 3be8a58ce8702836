"""Tables: their content, and their forms in a terminal, Markdown, LaTeX and HTML."""
