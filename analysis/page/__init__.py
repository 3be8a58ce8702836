"""The report page STORE/report.html: one file that needs no network, written by `python -m analysis report`.

`content` gathers its content from the same objects as tables, figures and notebooks; `svg`, `charts`, `examples` and `behind` make
parts of it. `render` fills `template.html` with it and adds `page.css` and `page.js`. The page's content security policy
forbids loading anything. `wandb_report` sends the page, tables and figures to a W&B project.
"""
