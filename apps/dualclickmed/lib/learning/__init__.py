"""Learning from the annotators: read what they submit, keep a record of it, retrain, publish what is better.

Nothing here needs MONAI Label; `trainers` and `activelearning` hand its server's requests on to this package.
"""
