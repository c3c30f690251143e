"""Results for people: the HTML report, its pictures, tables, progress on the screen. Data in, text out."""
