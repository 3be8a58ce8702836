"""The report page: `python -m analysis report` writes STORE/report.html, one file that needs no network.

`content` gathers what is shown, from the same objects as tables, figures and notebooks; `svg`, `charts`, `examples` and `behind`
are its parts. `render` puts it into `template.html`, with `page.css` and `page.js`. The page carries a content security policy
under which it can load nothing.
"""
