"""Stage II: drafts, an expert's verdicts, and the selection that is trained on."""
