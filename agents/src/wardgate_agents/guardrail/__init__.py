"""guardrail: finds prompt injections, personal data and keys in what goes to and comes from a language model.

    1  scan.py        windows of the content, and texts inside of texts (decode.py)
    2  normalise.py   each as a reader would understand it, with the way back to the original's characters
    3  injection.py   words (words.py, lexicon.py) --signals.py--> a score
       pii.py         numbers that can be what they claim to be
       secrets.py     keys by prefix, form and entropy
    4  spans.py       findings: places in bytes, the redacted text
    5  agent.py       event -> answer, by settings.py

measure.py says how well it does on labelled texts. What it finds and what it cannot: README.md.
"""
