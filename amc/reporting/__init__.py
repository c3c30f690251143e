"""Results for people: the HTML report, its pictures, tables, progress on the screen. Data in, text out.

The report takes three steps: facts.py gathers plain data, sections.py makes tables and pictures of it, and the template
report.html.j2 (style sheet: report.css) makes the page, which html.py writes. Nothing here searches or times anything.
"""
