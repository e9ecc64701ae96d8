"""The report of a study, made from its summary and a few of its trials' files: tables, figures and one page."""
