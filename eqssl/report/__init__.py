"""The report of a study, made from its summary alone: tables, figures and one page."""
